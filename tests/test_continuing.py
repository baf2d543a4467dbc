"""What is done with a run whose settings were changed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mvl_dist.config import RunConfig, identity, request_key, smoke, to_plain
from mvl_dist.continuing import differences, take_up, told, unfinished
from mvl_dist.errors import UserError
from mvl_dist.models import MODELS

READS = MODELS["vit_baseline"].reads


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    base = smoke()
    model = replace(base.model, name="vit_baseline")
    data = replace(base.data, task="Task91_PhantomTumour")
    return replace(base, model=model, data=data, output=tmp_path)


def begun(config: RunConfig, name: str = "", **position: Any) -> Path:
    """A run's folder as a training leaves it, with bytes for weights."""
    name = name or f"vit_baseline-fold0-{identity(config, READS, 'data')}"
    folder = config.output / config.data.task / name
    (folder / "checkpoints" / "step-00000005").mkdir(parents=True)
    (folder / "checkpoints" / "step-00000005" / "weights.pt").write_bytes(b"weights")
    (folder / "best.safetensors").write_bytes(b"best")
    (folder / "config.yaml").write_text(yaml.safe_dump(to_plain(config)))
    at = {"epoch": 1, "batch": 2, "step": 5, "loss_sum": 0.5, "finished": False, "best_dice": 0.3}
    about = {"tag": "step-00000005", "position": at | position, "frozen_checksum": "x"}
    (folder / "checkpoints" / "last.json").write_text(json.dumps(about))
    return folder


def changed(config: RunConfig, part: str, **values: Any) -> RunConfig:
    return replace(config, **{part: replace(getattr(config, part), **values)})


def test_an_unfinished_run_with_another_setting_is_found_with_what_differs(
    config: RunConfig,
) -> None:
    folder = begun(changed(config, "optim", lr=1e-3))
    ((found, other),) = unfinished(config, READS)
    assert found == folder
    assert told(differences(other, config, READS)) == "optim.lr 0.001 -> 0.002"


def test_what_only_moved_or_is_never_read_is_no_difference(
    config: RunConfig, tmp_path: Path
) -> None:
    moved = changed(config, "data", store=tmp_path / "elsewhere", workers=3)
    assert differences(changed(moved, "model", features=3), config, READS) == {}


@pytest.mark.parametrize("case", ["finished", "its own", "another fold", "another experiment"])
def test_a_run_that_is_nobodys_mistake_is_left_alone(config: RunConfig, case: str) -> None:
    other = changed(config, "optim", lr=1e-3)
    if case == "its own":
        begun(config)
    elif case == "another fold":
        other = changed(other, "data", fold=1)
    elif case == "another experiment":
        other = replace(other, experiment="ours")
    begun(other, f"vit_baseline-fold{other.data.fold}-0", finished=case == "finished")
    assert unfinished(config, READS) == []


def test_a_run_taken_up_begins_with_the_others_checkpoint_and_is_a_run_of_its_own(
    config: RunConfig, tmp_path: Path
) -> None:
    source = begun(config, epoch=6, batch=0, finished=True)
    longer = replace(changed(config, "optim", epochs=9), resume_from=source)
    folder = tmp_path / "new"
    folder.mkdir()
    assert take_up(source, folder, longer, READS) == 5
    about = json.loads((folder / "checkpoints" / "last.json").read_text())
    assert about["position"] | {"epoch": 6, "finished": False} == about["position"]
    assert (folder / "checkpoints" / "step-00000005" / "weights.pt").read_bytes() == b"weights"
    assert (folder / "best.safetensors").read_bytes() == b"best"
    alone = replace(longer, resume_from=None)
    assert identity(longer, READS, "data") != identity(alone, READS, "data")
    assert request_key(longer, READS) != request_key(alone, READS)
    # Started again it goes on from its own checkpoint.
    assert take_up(tmp_path / "gone", folder, longer, READS) == 0


def test_with_another_batch_the_epoch_begins_anew(config: RunConfig, tmp_path: Path) -> None:
    source = begun(config)
    for batch_size, expected in ((config.optim.batch_size, (2, 0.5)), (8, (0, 0.0))):
        folder = tmp_path / str(batch_size)
        folder.mkdir()
        take_up(source, folder, changed(config, "optim", batch_size=batch_size), READS)
        position = json.loads((folder / "checkpoints" / "last.json").read_text())["position"]
        assert (position["batch"], position["loss_sum"]) == expected


@pytest.mark.parametrize(
    ("part", "values", "reason"),
    [
        ("model", {"width": 32}, "differs in model.width 64 -> 32; only settings of optim"),
        ("data", {"fold": 1}, "differs in data.fold 0 -> 1"),
        ("optim", {"epochs": 1}, "has trained 1 epochs; ask for more than --epochs 1"),
    ],
)
def test_what_cannot_go_on_is_one_line(
    config: RunConfig, tmp_path: Path, part: str, values: dict[str, Any], reason: str
) -> None:
    source = begun(config)
    with pytest.raises(UserError, match=reason):
        take_up(source, tmp_path / "new", changed(config, part, **values), READS)
    with pytest.raises(UserError, match="no checkpoint of a run there"):
        take_up(tmp_path / "none", tmp_path / "new", config, READS)
    assert not (tmp_path / "new").exists()
