"""`mvl nnunet`, from scans to a run beside ours."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.nnunet.layout import find_export, read_export
from mvl_dist.cli import main
from tests.data_prep.nnunet.exported import Exported, predict
from tests.data_prep.tiny import NAME, convert_tiny, make_tiny


def test_from_scans_to_a_run_beside_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = make_tiny(tmp_path / "msd")
    convert_tiny(folder, tmp_path / "store")
    store, output, runs = (str(tmp_path / name) for name in ("store", "out", "runs"))
    about = ["--store", store, "--task", "50", "--output", output]
    assert main(["nnunet", "export", *about, "--msd-root", str(folder.parent)]) == 0
    assert "7 training and 1 held-out cases" in capsys.readouterr().out
    layout, done = find_export(Path(output), "50")
    given = Exported(folder.parent, tmp_path / "store", layout, done)
    predict(given, tmp_path / "predictions", lambda label: label)
    arguments = [*about, "--fold", "0", "--runs", runs]
    arguments += ["--predictions", str(tmp_path / "predictions")]
    assert main(["nnunet", "import", *arguments]) == 0
    assert "organ" in capsys.readouterr().out
    (run,) = (tmp_path / "runs" / NAME).glob("nnunetv2-fold0-*")
    lines = (run / "test_cases.csv").read_text().splitlines()
    assert lines[0].split(",")[:3] == ["task", "model", "fold"]
    assert len(lines) == 1 + 3 * len(given.export.test)  # organ, lesion, and both as foreground

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    (tracked,) = client.search_runs([client.get_experiment_by_name("mvl-dist").experiment_id])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.metrics["test_dice/organ"] == 1
    tags = tracked.data.tags
    assert (tags["model"], tags["task"], tags["fold"]) == ("nnunetv2", NAME, "0")
    assert tags["data_checksum"] == given.manifest.checksum
    assert tags["nnunet.trainer"] == "nnUNetTrainer"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["train", "--fold", "0"], "holds no export of Task04_Hippocampus"),
        (["import", "--fold", "0", "--runs", "r", "--store", "s"], "no store at s"),
        (["export", "--store", "s", "--msd-root", "m"], "no store at s"),
    ],
)
def test_a_step_out_of_order_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    assert main(["nnunet", *arguments, "--task", "4", "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


def test_without_the_package_the_command_that_installs_it(
    tiny: Exported, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    output = str(tiny.layout.output)
    assert main(["nnunet", "train", "--output", output, "--task", "50", "--fold", "0"]) == 1
    assert "pip install -e '.[nnunet]'" in capsys.readouterr().err


def test_the_packages_planner_accepts_the_export_and_keeps_our_folds(tiny: Exported) -> None:
    pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed: pip install -e '.[nnunet]'")
    from data_prep.nnunet.run import Training, _command, _plan

    training = Training(0, "3d_fullres", "nnUNetTrainer", "cpu", workers=1)
    folds = (tiny.layout.preprocessed / "splits_final.json").read_text()
    _plan(tiny.layout, tiny.export, training, _command("plan_and_preprocess"))
    assert (tiny.layout.preprocessed / "splits_final.json").read_text() == folds
    plans = json.loads((tiny.layout.preprocessed / "nnUNetPlans.json").read_text())
    assert "3d_fullres" in plans["configurations"]
    assert read_export(tiny.layout.raw / "mvl_export.json") == tiny.export


WAITING = """
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from data_prep.nnunet.run import _run
from mvl_dist.errors import UserError
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background job
try:
    _run(Path(sys.argv[1]), [sys.argv[2]], SimpleNamespace(output=Path("."), dataset="Dataset504"))
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_whoever_ends_a_training_ends_the_packages_command_too(
    number: signal.Signals, tmp_path: Path
) -> None:
    """As scancel of a step's first process, or a plain kill: it would train on alone."""
    command, pid = tmp_path / "nnUNetv2_train", tmp_path / "pid"
    command.write_text('#!/bin/sh\necho $$ > "$1.part"; mv "$1.part" "$1"; exec sleep 60\n')
    command.chmod(0o700)
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(command), str(pid)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    while not pid.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    said, _ = process.communicate(timeout=30)
    if number == signal.SIGTERM:
        assert "nnUNetv2_train on Dataset504 ended with signal 15" in said
    assert not Path(f"/proc/{int(pid.read_text())}").exists()
