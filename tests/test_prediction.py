"""What `mvl predict` finds in a scan is what `mvl evaluate` scores from the store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch

from mvl_dist.data import ARRAYS_OF
from mvl_dist.evaluation import Prediction, evaluate_cases
from mvl_dist.inputs import Case
from mvl_dist.plan import Plan
from mvl_dist.prediction import model_input, predict, values_of
from mvl_dist.recipe import Recipe
from mvl_dist.runs import load_trained
from mvl_dist.scans import Scan, read_case, write_over
from mvl_dist.store import read_array
from mvl_dist.trained import load_model
from tests.saved import config, save_run

TUMOUR, LESION = "Task91_PhantomTumour", "Task93_PhantomLesion"
TURNED = ("RAS", "LPS", "LAS", "PSR", "SLA", "IPL", "RPI")


def masks_from_store(
    model: torch.nn.Module, plan: Plan, case: str, largest: tuple[str, ...] = ()
) -> npt.NDArray[np.bool_]:
    seen: list[Prediction] = []
    evaluate_cases(model, plan, [case], largest=largest, see=seen.append)
    return seen[0].predicted


def scan_of(path: Path, recipe: Recipe) -> Scan:
    return read_case(Case("x", (path,)), recipe.task.modalities, len(recipe.modalities))


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        (TUMOUR, {"target": "regions"}),
        (TUMOUR, {"target": "labels", "activation": "softmax"}),
        (TUMOUR, {"target": "binary", "channels": "first"}),
        (LESION, {"target": "labels"}),  # CT: by the training cases' statistics
        (TUMOUR, {"target": "labels", "activation": "softmax", "resolution": "spaced"}),
        (LESION, {"target": "labels", "resolution": "spaced", "overlap": 0.25}),
    ],
    ids=["regions", "softmax", "first channel", "ct", "windows softmax", "windows ct"],
)
def test_a_scan_gives_the_very_mask_that_evaluation_makes_from_the_store(
    phantom_root: Path, phantom_store: Path, tmp_path: Path, task: str, changes: dict[str, object]
) -> None:
    plan = save_run(tmp_path / "run", config(phantom_store, task, **changes))
    _, from_store = load_trained(tmp_path / "run")
    recipe, model = load_model(tmp_path / "run")
    for case in plan.split.test:
        expected = masks_from_store(from_store, plan, case)
        scan = scan_of(phantom_root / task / "imagesTr" / f"{case}.nii.gz", recipe)
        array = ARRAYS_OF[recipe.config.data.resolution][0]
        stored = read_array(phantom_store, plan.manifest.task.name, case, array)
        given = model_input(scan.image, scan.spacing_mm, recipe).numpy()
        np.testing.assert_array_equal(given, stored[: len(recipe.modalities)])
        result = predict(scan.image, scan.spacing_mm, recipe, [model])
        np.testing.assert_array_equal(result.masks, expected)
        assert 0.05 < result.masks.mean() < 0.95
        if len(recipe.regions) == 1 or recipe.config.model.activation == "softmax":
            for value, mask in zip(values_of(recipe), expected, strict=True):
                np.testing.assert_array_equal(result.labels == value.labels[0], mask)


@pytest.mark.parametrize(
    ("changes", "largest"),
    [
        ({"target": "regions"}, ("edema", "whole tumour")),
        ({"target": "labels", "activation": "softmax"}, ("edema",)),
        ({"target": "binary"}, ("foreground",)),
    ],
    ids=["regions", "softmax", "binary"],
)
def test_what_evaluation_cleans_is_cleaned_in_masks_and_label_map(
    phantom_root: Path,
    phantom_store: Path,
    tmp_path: Path,
    changes: dict[str, object],
    largest: tuple[str, ...],
) -> None:
    plan = save_run(tmp_path / "run", config(phantom_store, TUMOUR, **changes))
    recipe, model = load_model(tmp_path / "run")
    (case, *_) = plan.split.test
    scan = scan_of(phantom_root / TUMOUR / "imagesTr" / f"{case}.nii.gz", recipe)
    plain = predict(scan.image, scan.spacing_mm, recipe, [model])
    result = predict(scan.image, scan.spacing_mm, recipe, [model], largest)
    np.testing.assert_array_equal(result.masks, masks_from_store(model, plan, case, largest))
    np.testing.assert_array_equal(result.probabilities, plain.probabilities)
    for region, before, after in zip(recipe.regions, plain.masks, result.masks, strict=True):
        assert (region.name in largest) == (after.sum() < before.sum())
        gone = before & ~after
        members = [v.labels[0] for v in values_of(recipe) if v.labels[0] in region.labels]
        assert not np.isin(result.labels[gone], members).any()


@pytest.mark.msd
def test_real_scans_too(msd_root: Path, tmp_path: Path) -> None:
    from data_prep.convert import ConvertOptions, convert_task

    root = tmp_path / "msd" / "Task04_Hippocampus"
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir(parents=True)
    dataset = json.loads((msd_root / root.name / "dataset.json").read_text())
    dataset["training"] = dataset["training"][:6]
    for pair in dataset["training"]:
        for path in pair.values():
            shutil.copyfile(msd_root / root.name / path, root / path)
    (root / "dataset.json").write_text(json.dumps(dataset))
    store = tmp_path / "store"
    convert_task(
        root, ConvertOptions(msd_root=root.parent, store=store, grid=(16, 16, 16), workers=1)
    )
    plan = save_run(tmp_path / "run", config(store, root.name))
    recipe, model = load_model(tmp_path / "run")
    for case in list(plan.manifest.cases)[:3]:
        scan = scan_of(root / "imagesTr" / f"{case}.nii.gz", recipe)
        expected = masks_from_store(model, plan, case)
        np.testing.assert_array_equal(
            predict(scan.image, scan.spacing_mm, recipe, [model]).masks, expected
        )


@pytest.fixture(scope="module")
def tumour(
    phantom_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Plan, Recipe, torch.nn.Module]:
    folder = tmp_path_factory.mktemp("tumour") / "run"
    plan = save_run(folder, config(phantom_store, TUMOUR))
    return (plan, *load_model(folder))


@pytest.mark.parametrize("codes", TURNED)
def test_one_scan_in_any_orientation_gives_one_mask_in_space(
    phantom_root: Path,
    tumour: tuple[Plan, Recipe, torch.nn.Module],
    tmp_path: Path,
    codes: str,
) -> None:
    plan, recipe, model = tumour
    source = phantom_root / TUMOUR / "imagesTr" / f"{plan.split.test[0]}.nii.gz"
    upright = scan_of(source, recipe)
    expected = predict(upright.image, upright.spacing_mm, recipe, [model]).labels
    original = nib.load(source)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(original.affine), nib.orientations.axcodes2ornt(codes)
    )
    nib.save(original.as_reoriented(turn), tmp_path / "turned.nii.gz")
    turned = nib.load(tmp_path / "turned.nii.gz")
    scan = scan_of(tmp_path / "turned.nii.gz", recipe)
    assert scan.orientation.codes == codes
    write_over(
        tmp_path / "mask.nii.gz", predict(scan.image, scan.spacing_mm, recipe, [model]).labels, scan
    )
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert mask.shape == turned.shape[:3]
    np.testing.assert_array_equal(mask.affine, turned.affine)
    upright_mask = nib.as_closest_canonical(mask)  # nibabel's own way to RAS+
    np.testing.assert_array_equal(np.asarray(upright_mask.dataobj), expected.T)
