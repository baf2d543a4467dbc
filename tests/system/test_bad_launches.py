"""Mistakes and accidents under the launcher: one line, no trace, nothing half-written."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mvl_dist.splits import make_split
from mvl_dist.store import read_manifest
from tests.system.launching import REPO, TRACES, environment, launch, run_folder

pytestmark = pytest.mark.tworank


def test_the_card_command_without_a_store_says_which_command_makes_it(tmp_path: Path) -> None:
    done = launch([], config="a100x8", MVL_STORE=str(tmp_path / "none"))
    assert done.one_line() == (
        f"error: no store at {tmp_path / 'none'}: make one with 'mvl convert --msd-root DIR "
        f"--store {tmp_path / 'none'} --tasks Task01_BrainTumour'"
    )


def test_missing_llama_weights_say_which_command_makes_them(
    arguments: list[str], tmp_path: Path
) -> None:
    done = launch([*arguments, "--donor", "llama-3.1-8b"], MVL_WEIGHTS=str(tmp_path))
    assert (
        "'hf download meta-llama/Llama-3.1-8B --local-dir ./Llama-3.1-8B' and 'mvl weights extract "
        f"--source ./Llama-3.1-8B --output {tmp_path / 'llama-3.1-8b'}'"
    ) in done.one_line()


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU")
def test_a_gpu_config_without_a_gpu_does_not_fall_back_to_the_cpu(
    arguments: list[str], tmp_path: Path
) -> None:
    done = launch([*arguments, "--output", str(tmp_path)], config="gpu1", DS_ACCELERATOR=None)
    assert "asks for bf16 on CUDA, and no GPU" in done.one_line()


def test_without_deepspeed_there_is_no_training(arguments: list[str], tmp_path: Path) -> None:
    plain = subprocess.run(
        [sys.executable, "mvl_dist/train.py", *arguments, "--output", str(tmp_path)],
        cwd=REPO,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert plain.returncode == 1
    assert plain.stderr.startswith("error: no DeepSpeed launcher: run 'accelerate launch")
    # The trap: Accelerate itself would run plain DDP here, and say nothing.
    done = launch([*arguments, "--output", str(tmp_path)], ACCELERATE_USE_CPU="true")
    assert "ACCELERATE_USE_CPU is set" in done.one_line()


def test_a_missing_deepspeed_config_is_one_line(arguments: list[str], tmp_path: Path) -> None:
    done = launch([*arguments, "--output", str(tmp_path)], deepspeed=tmp_path / "none.json")
    assert f"DeepSpeed config {tmp_path / 'none.json'} cannot be read" in done.one_line()


@pytest.mark.slow
def test_no_compilation_and_so_no_lock_of_a_killed_one_can_stop_a_run(
    arguments: list[str], tmp_path: Path
) -> None:
    """torch waits for ever for the lock file that a rank killed while compiling left behind."""
    lock = tmp_path / "extensions" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    (tmp_path / "empty").mkdir()
    done = launch(
        [*arguments, "--epochs", "1", "--output", str(tmp_path / "runs")],
        TORCH_EXTENSIONS_DIR=str(tmp_path / "extensions"),
        PATH=str(tmp_path / "empty"),  # no compiler either
    )
    assert done.code == 0, done.errors


def test_a_diverging_training_stops_all_ranks_with_one_message(
    arguments: list[str], tmp_path: Path
) -> None:
    output = ["--epochs", "20", "--output", str(tmp_path)]
    done = launch([*arguments, *output, "--lr", "1e30", "--max-grad-norm", "0"])
    line = done.one_line()
    assert "loss is not finite" in line
    assert "--warmup-epochs 1 --max-grad-norm 1" in line


@pytest.mark.parametrize("rank", [0, 1])
def test_a_corrupt_case_is_named_whichever_rank_meets_it(
    rank: int, arguments: list[str], phantom_store: Path, tmp_path: Path
) -> None:
    shutil.copytree(phantom_store, tmp_path / "store")
    manifest = read_manifest(phantom_store, "91")
    split = make_split(tuple(manifest.cases), manifest.task.name, 0, seed=manifest.split_seed)
    case = tmp_path / "store" / manifest.task.name / "cases" / split.validation[rank]
    chunk = case / "image/c/0/0/0/0"
    content = bytearray(chunk.read_bytes())
    content[-10] ^= 1
    chunk.write_bytes(bytes(content))
    output = ["--store", str(tmp_path / "store"), "--output", str(tmp_path / "runs")]
    line = launch([*arguments, *output]).one_line()
    assert line.startswith("error: " if rank == 0 else "error (rank 1): ")
    assert str(case) in line
    assert "mvl verify" in line
    assert line.endswith(f"or train without it: --leave-out {case.name}")
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    (run,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert run.info.status == "FAILED"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB, or skip."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_stops_before_a_checkpoint_is_begun_and_keeps_the_last(
    arguments: list[str], small_disk: Path
) -> None:
    done = launch([*arguments, "--epochs", "4", "--output", str(small_disk)])
    line = done.one_line()
    assert "cannot write" in line
    assert "make room" in line
    left = [path.name for path in run_folder(small_disk).rglob("*")]
    assert not [name for name in left if name.startswith(".partial-step")]


def test_a_folder_that_cannot_be_written_is_one_line(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    line = launch([*arguments, "--output", str(tmp_path / "file")]).one_line()
    assert line.endswith("(Not a directory): choose another --output")


def test_a_batch_that_does_not_divide_is_said_before_training(
    arguments: list[str], tmp_path: Path
) -> None:
    done = launch([*arguments, "--batch-size", "3", "--output", str(tmp_path)])
    assert "--batch-size 3 does not divide among 2 ranks: 2 or 4 does" in done.one_line()
    assert not list(tmp_path.iterdir())


def test_no_trace_reaches_a_user_who_mistypes_a_flag(arguments: list[str]) -> None:
    done = launch([*arguments, "--epoch", "3"], ranks=1)
    assert done.code != 0
    assert not any(trace in done.errors for trace in TRACES)
