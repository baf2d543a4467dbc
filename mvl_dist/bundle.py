"""A trained model as a MONAI bundle that runs with MONAI alone.

BUNDLE/
  configs/metadata.json    by MONAI's schema
  configs/inference.json   `run` predicts every NIfTI file of `dataset_dir`
  models/model.pt2         the network with all its weights, as torch.export writes it
  models/model.pt          its state dict, for `network_def`
  scripts/                 copies of this project's own preprocessing and label decision
  docs/README.md

MONAI's stock transforms cannot stand in for ours: they leave a scan's zeros unnormalised and widen
a shrinking axis by a Gaussian, so a model would meet other values than it was trained on.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mvl_dist.prediction import contains, values_of
from mvl_dist.recipe import Recipe

SCHEMA = "https://project-monai.github.io/schema/meta_schema_20240725.json"
SCRIPTS = "scripts"
ENTRY = "monai_transforms"
_OURS = re.compile(r"^from mvl_dist\.(\w+) import", re.MULTILINE)


def write_bundle(found: Path, bundle: Path, donor: str = "") -> None:
    """Fill an empty folder with the bundle of a trained model.

    Args:
        found: folder of a trained model, as `find_model` gives it.
        donor: where its language-model block lies now.

    Raises:
        UserError: as `mvl_dist.trained.load_model`.
    """
    from mvl_dist.trained import load_model

    recipe, model = load_model(found, donor)
    for part in ("configs", "models", "docs", SCRIPTS):
        (bundle / part).mkdir()
    _save_network(model, recipe, bundle / "models")
    for name, text in scripts().items():
        (bundle / SCRIPTS / name).write_text(text)
    for name, content in (
        ("metadata.json", metadata(found, recipe)),
        ("inference.json", inference(recipe)),
    ):
        (bundle / "configs" / name).write_text(json.dumps(content, indent=2))
    (bundle / "docs" / "README.md").write_text(_readme(recipe))


def _save_network(model: Any, recipe: Recipe, folder: Path) -> None:
    import torch

    model = model.to("cpu", torch.float32)
    image = torch.zeros(1, len(recipe.modalities), *recipe.config.data.grid)
    with torch.no_grad():
        program = torch.export.export(model, (image,), strict=False)
    torch.export.save(program, folder / "model.pt2")
    weights = program.module().state_dict()
    torch.save({f"network.{name}": value for name, value in weights.items()}, folder / "model.pt")


def scripts() -> dict[str, str]:
    """The bundle's own modules, file name -> text: the entry and all of ours that it imports."""
    folder = Path(__file__).parent
    texts = {"__init__.py": '"""Preprocessing and label decision, copied from mvl-dist."""\n'}
    waiting = [ENTRY]
    while waiting:
        name = waiting.pop()
        if f"{name}.py" not in texts:
            text = (folder / f"{name}.py").read_text()
            waiting += _OURS.findall(text)
            texts[f"{name}.py"] = _OURS.sub(rf"from {SCRIPTS}.\1 import", text)
    return texts


def inference(recipe: Recipe) -> dict[str, Any]:
    """configs/inference.json."""
    ours = f"{SCRIPTS}.{ENTRY}"
    return {
        "imports": ["$import glob", "$import numpy", "$import torch"],
        "bundle_root": ".",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "dataset_dir": "scans",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": "$sorted(glob.glob(@dataset_dir + '/*.nii*'))",
        "network_def": {
            "_target_": f"{ours}.ExportedNetwork",
            "model_file": "$@bundle_root + '/models/model.pt2'",
            "device": "@device",
        },
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {
                    "_target_": "Orientationd",
                    "keys": "image",
                    "axcodes": "RAS",
                    "labels": None,
                },
                {
                    "_target_": f"{ours}.ModelInputd",
                    "keys": "image",
                    "normalisation": dict(recipe.normalisation),
                    **_target(recipe),
                    "channels": len(recipe.modalities),
                },
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path} for path in @datalist]",
            "transform": "@preprocessing",
        },
        "inferer": _inferer(recipe),
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": f"{ours}.LabelMapd",
                    "keys": "pred",
                    "values": [value.labels[0] for value in values_of(recipe)],
                    "contains": contains(recipe).tolist(),
                    "activation": recipe.config.model.activation,
                },
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "",
                    "separate_folder": False,
                    "resample": True,  # to the axes of the file; no voxel moves
                    "mode": "nearest",
                    "output_dtype": "$numpy.uint8",
                },
            ],
        },
        "evaluator": {
            "_target_": f"{ours}.Inference",
            "dataset": "@dataset",
            "network": "@network_def",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "device": "@device",
        },
        "run": ["$@evaluator.run()"],
    }


def _target(recipe: Recipe) -> dict[str, Any]:
    """What a scan is resampled to, as an argument of `ModelInputd`."""
    if recipe.config.data.resolution == "grid":
        return {"grid": list(recipe.config.data.grid)}
    return {"spacing_mm": list(recipe.spacing_mm)}


def _inferer(recipe: Recipe) -> dict[str, Any]:
    data = recipe.config.data
    if data.resolution == "grid":
        return {"_target_": "SimpleInferer"}
    return {
        "_target_": "SlidingWindowInferer",
        "roi_size": list(data.grid),
        "sw_batch_size": 1,  # as the network was exported
        "overlap": data.overlap,
        "mode": "gaussian",
        "sw_device": "@device",
        "device": "cpu",
    }


def metadata(found: Path, recipe: Recipe) -> dict[str, Any]:
    """configs/metadata.json."""
    import monai
    import nibabel
    import numpy
    import scipy
    import torch

    from mvl_dist import __version__
    from mvl_dist.model_card import read_scores

    config, task = recipe.config, recipe.task
    scores = read_scores(found)
    classes = {"0": "background", **{str(v.labels[0]): v.name for v in values_of(recipe)}}
    outputs = [region.name for region in recipe.regions]
    if recipe.out_channels > len(outputs):
        outputs = ["background", *outputs]
    ct = recipe.task.intensity == "ct"

    def tensor(names: list[str], kind: str) -> dict[str, Any]:
        return {
            "type": "image",
            "format": kind,
            "modality": "CT" if ct else "MR",
            "num_channels": len(names),
            "spatial_shape": list(config.data.grid),
            "dtype": "float32",
            "value_range": [],
            "is_patch_data": config.data.resolution == "spaced",
            "channel_def": {str(number): name for number, name in enumerate(names)},
        }

    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported by mvl-dist {__version__}"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": numpy.__version__,
        "required_packages_version": {
            "nibabel": nibabel.__version__,
            "scipy": scipy.__version__,
        },
        "name": f"{config.model.name} on {task.name}",
        "task": f"Segmentation of {', '.join(region.name for region in recipe.regions)}",
        "description": f"{config.model.name}, fold {config.data.fold}, trained on {task.name}; "
        f"takes {_input_in_words(recipe)}",
        "authors": "see docs/README.md",
        "copyright": "see docs/README.md",
        "data_source": task.source,
        "data_type": "nibabel",
        "image_classes": f"{', '.join(recipe.modalities)}; any orientation and spacing",
        "pred_classes": ", ".join(f"{value} {name}" for value, name in classes.items()),
        "eval_metrics": {
            f"mean_dice_{region}": round(values["dice"][0], 4) for region, values in scores.items()
        },
        "intended_use": "Research; not a medical device",
        "network_data_format": {
            "inputs": {
                "image": tensor(list(recipe.modalities), "hounsfield" if ct else "magnitude")
            },
            "outputs": {"pred": tensor(outputs, "segmentation")},
        },
    }


def _input_in_words(recipe: Recipe) -> str:
    if recipe.config.data.resolution == "grid":
        return "a whole scan, resampled to one grid"
    spacing = " x ".join(f"{mm:g}" for mm in recipe.spacing_mm)
    return f"windows of a scan, resampled to {spacing} mm (D, H, W)"


def _readme(recipe: Recipe) -> str:
    config = recipe.config
    return f"""# {config.model.name} on {recipe.task.name}, fold {config.data.fold}

With MONAI, nibabel and scipy, from this bundle's folder:

    python -m monai.bundle run --config_file configs/inference.json --dataset_dir /path/to/scans

writes one label map a scan into eval/, over the scan's own grid. Research only; no medical device.

models/ holds the whole network, a language model's block included where it has one: that block's
licence goes with it. The training data's source: {recipe.task.source}.
"""
