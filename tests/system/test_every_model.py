"""Every model of the registry through the main job: it learns, saves, and predicts the same."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open

from data_prep.convert import ConvertOptions, convert_task
from mvl_dist.evaluation import evaluate_cases
from mvl_dist.models import MODELS
from mvl_dist.runs import load_trained
from tests.system.launching import REPO, curve_of, deepspeed_config, launch

pytestmark = [pytest.mark.tworank, pytest.mark.slow]
GRID = (32, 32, 64)  # SwinUNETR's deepest stage needs two voxels
# Exclusive and overlapping regions of the nested tumour, and the lesion's foreground.
TARGETS = {"binary": "Task93_PhantomLesion", "labels": "Task91_PhantomTumour"}
TARGETS["regions"] = "Task91_PhantomTumour"


@pytest.fixture(scope="module")
def store(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("every") / "store"
    for folder in sorted(phantom_root.iterdir()):
        convert_task(
            folder, ConvertOptions(msd_root=phantom_root, store=path, grid=GRID, workers=1)
        )
    return path


def kinds(ranks: int) -> list[tuple[str, str]]:
    """(model, target): each pair falls to one rank or to two, and each model to both."""
    pairs = [
        (name, target, (number + turn) % len(TARGETS) == 0)
        for number, name in enumerate(MODELS)
        for turn, target in enumerate(TARGETS)
    ]
    return [(name, target) for name, target, alone in pairs if alone == (ranks == 1)]


def study(donor: Path, pairs: list[tuple[str, str]], **data: object) -> dict[str, object]:
    small = {"patch": [8, 8, 8], "width": 16, "heads": 2, "depth": 2, "llm_position": 2}
    steps = {"warmup_epochs": 0.0, "validate_every": 2}
    variants = {
        f"{name} {target}": {"model": {"name": name}, "data": {"target": target}}
        for name, target in pairs
    }
    return {
        "name": "every",
        "preset": "smoke",
        "set": {
            "data": {"grid": list(GRID), **data},
            "model": {**small, "features": 4, "donor": {"source": str(donor)}},
            # At the presets' 2e-3, six steps are too few to come back from Adam's first ones.
            "optim": {**steps, "epochs": 2, "batch_size": 2, "lr": 5e-4},
        },
        "folds": [0],
        "variants": variants,
        "tables": {
            target: {
                "models": [f"{name} {target}" for name, its in pairs if its == target],
                "tasks": [task],
            }
            for target, task in TARGETS.items()
            if target in {its for _, its in pairs}
        },
    }


@pytest.mark.parametrize(("ranks", "precision"), [(1, "float32"), (2, "bfloat16")])
def test_every_model_learns_every_kind_of_target_and_predicts_the_same_again(
    ranks: int, precision: str, store: Path, donor: Path, tmp_path: Path
) -> None:
    file, output = tmp_path / "every.yaml", tmp_path / "runs"
    pairs = kinds(ranks)
    file.write_text(yaml.safe_dump(study(donor, pairs)))
    config = (
        REPO / "deepspeed_configs" / "zero2.json"
        if precision == "bfloat16"
        else deepspeed_config(tmp_path, 2)
    )
    done = launch(
        [str(file), "--store", str(store), "--output", str(output)],
        ranks,
        config,
        script="train_study.py",
    )
    count = len(pairs)
    assert done.code == 0, done.errors
    assert f"{count} runs trained, 0 failed" in done.output
    folders = sorted(path.parent for path in output.glob("*/*/config.yaml"))
    assert len(folders) == count
    for folder in folders:
        first, second = curve_of(folder, "train_loss_epoch").values()
        assert second < first, folder.name
        plan, model = load_trained(folder)
        with safe_open(folder / "best.safetensors", framework="pt") as best:
            saved = best.metadata()
        assert saved["dtype"] == precision
        rows = evaluate_cases(model.to(getattr(torch, precision)), plan, plan.split.validation)
        marked = {region.name for region in plan.regions}  # what validation looks at
        grid = [row["dice_grid"] for row in rows if row["region"] in marked]
        dice = sum(grid) / len(grid)
        assert dice == pytest.approx(float(saved["val_dice"]), abs=2e-3), folder.name


def test_every_model_learns_from_crops(store: Path, donor: Path, tmp_path: Path) -> None:
    file, output = tmp_path / "crops.yaml", tmp_path / "runs"
    pairs = [(name, "binary") for name in MODELS]
    crops = {"resolution": "spaced", "overlap": 0.25, "patches_per_case": 2}
    file.write_text(yaml.safe_dump(study(donor, pairs, **crops)))
    done = launch(
        [str(file), "--store", str(store), "--output", str(output)],
        2,
        deepspeed_config(tmp_path, 3),
        script="train_study.py",
    )
    assert done.code == 0, done.errors
    assert f"{len(pairs)} runs trained, 0 failed" in done.output
    folders = sorted(path.parent for path in output.glob("*/*/config.yaml"))
    assert len(folders) == len(pairs)
    for folder in folders:
        first, second = curve_of(folder, "train_loss_epoch").values()
        assert second < first, folder.name
        assert len(curve_of(folder, "val_dice")) == 1
        assert (folder / "test_cases.csv").is_file()
