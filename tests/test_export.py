"""`mvl export`: the folder stands alone, and the bundle runs in MONAI without this project."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from mvl_dist.bundle import scripts
from mvl_dist.cli import main
from mvl_dist.models.donors.extract import extract
from mvl_dist.trained import read_recipe
from tests.saved import RANDOM_DONOR, config, save_run, with_donor

TASK = "Task93_PhantomLesion"  # CT, so that statistics of the training are needed


@pytest.fixture(scope="module")
def run(phantom_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model around a donor in a folder, whose store is not there any more."""
    root = tmp_path_factory.mktemp("secret")
    store = shutil.copytree(phantom_store, root / "store")
    donor = extract(RANDOM_DONOR, (-1,), root / "donor").folder
    base = config(store, TASK, name="medvisionllama")
    model = replace(
        with_donor(base.model, str(donor)), lora=replace(base.model.lora, targets=("query",))
    )
    save_run(root / "run", replace(base, model=model))
    (root / "run" / "test_cases.csv").write_text(
        "task,case,region,dice,nsd,hd95_mm\n"
        f"{TASK},a,organ,0.5,0.25,3.0\n{TASK},b,organ,0.7,nan,4.0\n"
    )
    shutil.rmtree(store)
    return root / "run"


@pytest.fixture(scope="module")
def windows(phantom_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of crops."""
    folder = tmp_path_factory.mktemp("windows") / "run"
    save_run(folder, config(phantom_store, TASK, resolution="spaced"))
    return folder


@pytest.fixture
def scans(phantom_root: Path, tmp_path: Path) -> Path:
    """One scan, turned."""
    (tmp_path / "scans").mkdir()
    source = nib.load(next((phantom_root / TASK / "imagesTr").glob("*.nii.gz")))
    turn = nib.orientations.axcodes2ornt("PLS")
    nib.save(source.as_reoriented(turn), tmp_path / "scans" / "a.nii.gz")
    return tmp_path / "scans"


def mvl(*arguments: object) -> int:
    return main([*map(str, arguments)])


def predicted(run: Path, scans: Path, output: Path, *more: object) -> np.ndarray:
    assert mvl("predict", "--run", run, "--input", scans, "--output", output, *more) == 0
    return np.asarray(nib.load(output / "a.nii.gz").dataobj)


def test_an_exported_folder_predicts_as_its_run_does_wherever_it_lies(
    run: Path, scans: Path, tmp_path: Path
) -> None:
    expected = predicted(run, scans, tmp_path / "by run")
    assert len(np.unique(expected)) == 3
    assert mvl("export", run, "--output", tmp_path / "whole", "--with-donor") == 0
    assert mvl("export", tmp_path / "whole", "--output", tmp_path / "small") == 0
    moved = (tmp_path / "whole").rename(tmp_path / "moved")
    np.testing.assert_array_equal(predicted(moved, scans, tmp_path / "1"), expected)
    by_name = predicted(tmp_path / "small", scans, tmp_path / "2")
    np.testing.assert_array_equal(by_name, expected)  # the reference became a name known anywhere
    donor = ("--donor", moved / "donor")
    np.testing.assert_array_equal(
        predicted(tmp_path / "small", scans, tmp_path / "3", *donor), expected
    )
    weights = tmp_path / "small" / "best.safetensors"
    assert weights.stat().st_size < (moved / "donor" / "block.safetensors").stat().st_size / 2


def test_an_exported_folder_tells_what_it_is_and_nothing_of_the_machine(
    run: Path, tmp_path: Path
) -> None:
    assert mvl("export", run, "--output", tmp_path / "out") == 0
    for path in (tmp_path / "out").iterdir():
        assert str(run.parent).encode() not in path.read_bytes(), path
    settings = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert settings["model"]["donor"] == {"source": RANDOM_DONOR, "layers": [5]}
    about = json.loads((tmp_path / "out" / "run.json").read_text())
    assert about["normalisation"] == read_recipe(run).normalisation
    assert json.loads((tmp_path / "out" / "split.json").read_text())["test"]
    card = (tmp_path / "out" / "README.md").read_text()
    low, high = about["normalisation"]["clip_hu"]
    for words in (
        "medvisionllama on Task93_PhantomLesion, fold 0",
        f"clipped to {low:g}..{high:g} HU",
        "| organ | 0.600 | 0.250 | 3.500 | 2 |",
        about["donor_checksum"],
        about["weights_checksum"],
        "1 organ, 2 lesion",
    ):
        assert words in card


def test_mistakes_are_one_line_and_leave_nothing(
    run: Path, phantom_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_run(tmp_path / "vit", config(phantom_store, TASK))
    other = extract(RANDOM_DONOR, (-1,), tmp_path / "other", seed=1).folder
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    before = sorted(tmp_path.rglob("*"))
    for arguments, reason in (
        ((tmp_path / "absent", "--output", tmp_path / "o"), "no such folder"),
        ((run, "--output", tmp_path / "full"), "holds something already"),
        ((tmp_path / "vit", "--output", tmp_path / "o", "--with-donor"), "no language-model"),
        (
            (run, "--output", tmp_path / "o", "--with-donor", "--donor", other),
            "is not the one that",
        ),
    ):
        assert mvl("export", *arguments) == 1
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 1
        assert reason in errors[0]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("resolution", ["grid", "spaced"])
def test_monai_runs_the_bundle_and_finds_what_predict_finds(
    resolution: str,
    run: Path,
    windows: Path,
    scans: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import monai.bundle

    run = run if resolution == "grid" else windows
    bundle = tmp_path / "bundle"
    assert mvl("export", run, "--output", tmp_path / "small", "--monai-bundle", bundle) == 0
    expected = predicted(run, scans, tmp_path / "out")
    configs = {
        "config_file": str(bundle / "configs" / "inference.json"),
        "meta_file": str(bundle / "configs" / "metadata.json"),
    }
    monkeypatch.syspath_prepend(str(bundle))
    ours = [name for name in sys.modules if name.split(".")[0] in ("mvl_dist", "scripts")]
    for name in ours:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mvl_dist", None)  # importing it fails
    monai.bundle.run(**configs, bundle_root=str(bundle), dataset_dir=str(scans))
    assert sys.modules["scripts"].__file__ == str(bundle / "scripts" / "__init__.py")
    written, scan = (nib.load(p) for p in (bundle / "eval" / "a.nii.gz", scans / "a.nii.gz"))
    np.testing.assert_array_equal(np.asarray(written.dataobj), expected)
    np.testing.assert_allclose(written.affine, scan.affine, atol=1e-5)

    monai.bundle.verify_net_in_out("network_def", **configs, device="cpu", bundle_root=str(bundle))
    workflow = monai.bundle.ConfigWorkflow(
        **configs, workflow_type="infer", logging_file=False, bundle_root=str(bundle)
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    workflow.network_def.load_state_dict(weights)


def test_the_metadata_has_what_monais_schema_requires(run: Path, tmp_path: Path) -> None:
    from mvl_dist.bundle import metadata

    content = metadata(run, read_recipe(run))
    json.dumps(content)
    # "required" of meta_schema_20240725.json, for the whole and for a tensor.
    words = "version monai_version pytorch_version numpy_version task description authors copyright"
    assert all(isinstance(content[word], str) for word in ["schema", *words.split()])
    assert isinstance(content["required_packages_version"], dict)
    (image,) = content["network_data_format"]["inputs"].values()
    (pred,) = content["network_data_format"]["outputs"].values()
    for tensor, channels in ((image, 1), (pred, 2)):
        assert tensor.keys() >= {"type", "format", "spatial_shape", "dtype", "value_range"}
        assert tensor["num_channels"] == channels
    assert content["eval_metrics"] == {"mean_dice_organ": 0.6}


def test_a_model_of_crops_says_so_on_its_card_and_in_its_metadata(
    windows: Path, tmp_path: Path
) -> None:
    from mvl_dist.bundle import metadata

    assert mvl("export", windows, "--output", tmp_path / "out") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    d, h, w = read_recipe(windows).spacing_mm
    assert f"resampled to {d:g} x {h:g} x {w:g} mm" in card
    assert "windows of 16x16x16 voxels that overlap by 50%" in card
    image = metadata(windows, read_recipe(windows))["network_data_format"]["inputs"]["image"]
    assert image["is_patch_data"]


def test_the_bundles_scripts_need_nothing_of_this_project() -> None:
    texts = scripts()
    for name, text in texts.items():
        lines = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
        assert not [line for line in lines if "mvl_dist" in line], name
        ours = {line.split()[1].split(".")[1] for line in lines if "scripts." in line}
        assert {f"{module}.py" for module in ours} <= texts.keys()
