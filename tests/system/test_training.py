"""The main job on two ranks, as a user runs it: its results, its ends, its interruptions."""

import csv
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from mlflow import MlflowClient

from mvl_dist.showcase import Showcase
from mvl_dist.splits import make_split
from mvl_dist.store import read_manifest
from tests.system.launching import (
    REPO,
    command,
    curve,
    deepspeed_config,
    environment,
    launch,
    run_folder,
    tags,
    wait_for,
)

pytestmark = pytest.mark.tworank
EPOCHS = 12


@pytest.fixture(scope="module")
def unbroken(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training from beginning to end; `done.txt` holds what it printed."""
    output = tmp_path_factory.mktemp("unbroken")
    done = launch([*arguments, "--epochs", str(EPOCHS), "--output", str(output)])
    assert done.code == 0, done.errors
    (output / "done.txt").write_text(done.output)
    (output / "errors.txt").write_text(done.errors)
    return output


def test_it_ends_with_the_table_and_says_where_everything_lies(unbroken: Path) -> None:
    printed = (unbroken / "done.txt").read_text()
    for words in ("edema", "non-enhancing tumor", "NSD at", "HD95 (mm)", "one mask empty"):
        assert words in printed
    folder = run_folder(unbroken)
    for name in ("best.safetensors", "checkpoints", "test_cases.csv", "test_overlay.png"):
        assert str(folder / name) in printed
        assert (folder / name).exists()
    assert f"mlflow ui --host 127.0.0.1 --backend-store-uri sqlite:///{unbroken}" in printed
    assert printed.count("best model") == 1  # rank 0 alone speaks


def test_the_ranks_print_nothing_but_real_problems(unbroken: Path) -> None:
    assert (unbroken / "errors.txt").read_text() == ""


def test_every_test_case_is_scored_exactly_once(unbroken: Path, phantom_store: Path) -> None:
    manifest = read_manifest(phantom_store, "91")
    split = make_split(tuple(manifest.cases), manifest.task.name, 0, seed=manifest.split_seed)
    with (run_folder(unbroken) / "test_cases.csv").open() as file:
        scored = [(row["case"], row["region"]) for row in csv.DictReader(file)]
    task = manifest.task  # labels as MSD has them, the paper's foreground, overlapping unions
    regions = [name for _, name in task.labels] + ["foreground"]
    regions += [region.name for region in task.union_regions]
    assert sorted(scored) == sorted((case, region) for case in split.test for region in regions)


def test_mlflow_holds_config_provenance_curves_and_results(unbroken: Path) -> None:
    client = MlflowClient(f"sqlite:///{unbroken / 'mlflow.db'}")
    known = json.loads((run_folder(unbroken) / "mlflow.json").read_text())
    run = client.get_run(known["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["optim.lr"] == "0.002"
    assert run.data.params["parameters.frozen_llm"] == "3540672"
    for tag in ("zero_stage", "world_size", "data_checksum", "git_commit", "version.deepspeed"):
        assert run.data.tags[tag]
    assert run.data.tags["zero_stage"] == "2"
    assert "test_dice/edema" in run.data.metrics
    assert run.data.metrics["test_n_dice/edema"] == 1
    for key in ("train_loss", "grad_norm", "val_dice", "data_wait_ms"):
        assert len(client.get_metric_history(known["run_id"], key)) == len(curve(unbroken, key))
    assert 0 < run.data.metrics["data_wait_share"] < 1
    artifacts = {item.path for item in client.list_artifacts(known["run_id"])}
    assert artifacts >= {"config.yaml", "split.json", "test_cases.json", "test_overlay.png"}
    # What the report draws from, of both ranks' cases.
    showcase = Showcase(Path(client.download_artifacts(known["run_id"], "report/showcase.npz")))
    assert showcase.about["counts"]["test"] == len(showcase.about["cases"]) == 1
    assert showcase.array("activation", "V_D1") is not None
    assert "| worst |" in run.data.tags["mlflow.note.content"]


def test_the_loss_falls_and_the_best_epoch_is_the_one_with_the_best_validation(
    unbroken: Path,
) -> None:
    losses = list(curve(unbroken).values())
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    dice = list(curve(unbroken, "val_dice").values())
    position = json.loads((run_folder(unbroken) / "checkpoints" / "last.json").read_text())
    assert position["position"]["best_dice"] == max(dice)
    assert position["position"]["best_epoch"] == dice.index(max(dice)) + 1


def test_checkpoints_hold_no_donor_and_only_the_newest_are_kept(unbroken: Path) -> None:
    folder = run_folder(unbroken)
    donor_bytes = 3_540_672 * 4
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in files) < donor_bytes / 2
    assert len(list((folder / "checkpoints").glob("step-*"))) == 2


def test_evaluate_gives_the_same_figures_again(unbroken: Path) -> None:
    folder = run_folder(unbroken)
    before = (folder / "test_cases.csv").read_text()
    done = subprocess.run(
        [sys.executable, "-m", "mvl_dist.cli", "evaluate", str(folder)],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    again = list(csv.DictReader((folder / "test_cases.csv").open()))
    for row, old in zip(
        sorted(again, key=lambda r: (r["case"], r["region"])),
        csv.DictReader(before.splitlines()),
        strict=True,
    ):
        assert float(row["dice"]) == pytest.approx(float(old["dice"]), abs=1e-6)


def start(arguments: list[str], output: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command([*arguments, "--epochs", str(EPOCHS), "--output", str(output)]),
        cwd=REPO,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def checkpointed(output: Path) -> bool:
    return bool(list(output.glob("*/*/checkpoints/last.json")))


def ranks(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    return [
        p for p in psutil.Process(process.pid).children() if "train.py" in " ".join(p.cmdline())
    ]


def step_of(output: Path) -> int:
    """Step of the last checkpoint, 0 where there is none."""
    files = list(output.glob("*/*/checkpoints/last.json"))
    return int(json.loads(files[0].read_text())["position"]["step"]) if files else 0


def kill_while_saving(process: "subprocess.Popen[str]", output: Path) -> None:
    """kill -9 of all ranks at a moment when a checkpoint after the first is half there."""
    wait_for(lambda: step_of(output) > 0, process)
    while True:
        assert process.poll() is None
        if not list(output.glob("*/*/checkpoints/.partial-step-*")):
            continue
        frozen = ranks(process)
        for rank in frozen:
            rank.suspend()
        if list(output.glob("*/*/checkpoints/.partial-step-*")):
            break
        for rank in frozen:
            rank.resume()
    for rank in frozen:
        rank.kill()


@pytest.mark.slow
def test_a_killed_rank_and_every_signal_cost_nothing_and_the_curve_is_the_unbroken_one(
    arguments: list[str], unbroken: Path, tmp_path: Path
) -> None:
    process = start(arguments, tmp_path)
    kill_while_saving(process, tmp_path)
    process.communicate(timeout=120)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        before = step_of(tmp_path)
        process = start(arguments, tmp_path)
        wait_for(lambda before=before: step_of(tmp_path) > before, process)
        if number == signal.SIGKILL:
            ranks(process)[1].kill()
            process.communicate(timeout=120)
            assert process.returncode != 0
            continue
        for rank in ranks(process):
            rank.send_signal(number)
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert f"{number.name}: saved at step" in output
        assert step_of(tmp_path) == len(curve(tmp_path))  # nothing done was lost
    assert len(curve(tmp_path)) < len(curve(unbroken))
    assert not list(tmp_path.glob("*/*/checkpoints/.partial-*"))  # those of the killed are gone
    done = launch([*arguments, "--epochs", str(EPOCHS), "--output", str(tmp_path)])
    assert done.code == 0, done.errors
    # The same numbers to the last digit: order, augmentation and dropout follow seed and step.
    assert curve(tmp_path) == curve(unbroken)
    assert curve(tmp_path, "val_dice") == curve(unbroken, "val_dice")


def test_mvl_train_passes_a_signal_on_to_the_ranks(arguments: list[str], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "mvl_dist.cli", "train", "--launcher", "cpu2"),
            *(*arguments, "--epochs", "50", "--output", str(tmp_path / "runs")),
        ],
        cwd=tmp_path,  # not the project's folder
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: checkpointed(tmp_path / "runs"), process)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "SIGTERM: saved at step" in output


def test_a_finished_run_started_again_is_only_scored_again(
    arguments: list[str], unbroken: Path, tmp_path: Path
) -> None:
    shutil.copytree(unbroken, tmp_path / "copy")
    for known in (tmp_path / "copy").glob("*/*/mlflow.json"):
        known.unlink()  # the copy is another database
    before = curve(tmp_path / "copy")
    done = launch([*arguments, "--epochs", str(EPOCHS), "--output", str(tmp_path / "copy")])
    assert done.code == 0, done.errors
    assert curve(tmp_path / "copy") == before
    assert "NSD at" in done.output


def test_a_run_that_shall_start_anew_keeps_the_old_folder_aside(
    arguments: list[str], unbroken: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(unbroken, copied)
    folder = run_folder(copied)
    anew = ["--epochs", str(EPOCHS), "--output", str(copied), "--resume", "False"]
    done = launch([*arguments, *anew])
    assert done.code == 0, done.errors
    (old,) = folder.parent.glob(f"{folder.name}.before-*")
    assert (old / "best.safetensors").exists()
    lines = (folder / "journal.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if '"train_loss"' in line]
    assert steps == list(range(1, len(curve(unbroken)) + 1))


def test_a_run_goes_on_with_another_number_of_ranks_and_another_stage(
    arguments: list[str], unbroken: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(unbroken, copied)
    checkpoints = run_folder(copied) / "checkpoints"
    last = json.loads((checkpoints / "last.json").read_text())
    earlier, latest = sorted(checkpoints.glob("step-*"))
    steps = int(latest.name[5:]) - int(earlier.name[5:])
    step = last["position"]["step"] - steps
    position = {**last["position"], "epoch": EPOCHS - 1, "step": step, "finished": False}
    last |= {"tag": earlier.name, "position": position}
    (checkpoints / "last.json").write_text(json.dumps(last))
    shutil.rmtree(latest)
    (run_folder(copied) / "journal.jsonl").write_text("")
    done = launch(
        [*arguments, "--epochs", str(EPOCHS), "--output", str(copied)],
        ranks=1,
        deepspeed=deepspeed_config(tmp_path, 3),
    )
    assert done.code == 0, done.errors
    assert "world_size 2 -> 1, zero_stage 2 -> 3, precision float32 -> float32" in done.output
    # Another rank draws other dropout, so the losses are near, not the same.
    before, after = curve(unbroken), curve(copied)
    assert list(after) == list(before)[-steps:]
    assert list(after.values()) == pytest.approx(list(before.values())[-steps:], rel=0.15)


def test_consolidate_gives_what_deepspeeds_own_script_gives(unbroken: Path, tmp_path: Path) -> None:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    from safetensors.torch import load_file

    folder, file = run_folder(unbroken), tmp_path / "last.safetensors"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mvl_dist.cli", "consolidate", str(folder)),
            *("--output", str(file), "--with-donor"),
        ],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    last = json.loads((folder / "checkpoints" / "last.json").read_text())
    expected = get_fp32_state_dict_from_zero_checkpoint(
        str(folder / "checkpoints"), tag=last["tag"], exclude_frozen_parameters=True
    )
    got = load_file(file)
    assert {name for name in got if name in expected} == set(expected)
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    donor = sum(value.numel() for name, value in got.items() if name not in expected)
    assert donor >= 3_540_672


@pytest.mark.slow
@pytest.mark.msd
def test_the_baseline_learns_the_real_hippocampus(msd_root: Path, tmp_path: Path) -> None:
    convert = [
        *(sys.executable, "-m", "mvl_dist.cli", "convert", "--msd-root", str(msd_root)),
        *("--store", str(tmp_path / "store"), "--tasks", "04", "--grid", "32", "48", "32"),
    ]
    subprocess.run(convert, check=True, capture_output=True)
    done = launch(
        [
            *("--preset", "smoke", "--store", str(tmp_path / "store"), "--task", "04"),
            *("--grid", "32", "48", "32", "--model", "vit_baseline", "--target", "binary"),
            *("--channels", "first", "--epochs", "6", "--output", str(tmp_path / "runs")),
        ]
    )
    assert done.code == 0, done.errors
    assert max(curve(tmp_path / "runs", "val_dice").values()) >= 0.80
    assert tags(tmp_path / "runs")["task"] == "Task04_Hippocampus"
    assert (run_folder(tmp_path / "runs") / "test_overlay.png").stat().st_size > 10_000
