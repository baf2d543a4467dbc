import subprocess
import sys
import time
from pathlib import Path

import pytest

from mvl_dist import cli, launch
from mvl_dist.errors import UserError

PHANTOM = (
    "--store",
    "STORE",
    "--task",
    "91",
    "--model",
    "vit_baseline",
    "--grid",
    "16",
    "16",
    "16",
)
REPO = Path(__file__).resolve().parent.parent


def mvl(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mvl_dist.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload, no-any-return]


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys; from mvl_dist.cli import main; main(['--help']); "
        "slow = {'torch', 'zarr', 'mlflow', 'transformers', 'deepspeed', 'monai'}; "
        "sys.exit(bool(slow & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_a_help_of_its_own(command: str) -> None:
    done = mvl(command, "--help")
    assert done.returncode == 0, done.stderr
    assert f"mvl {command}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["trian"], "no command 'trian': did you mean 'train'?"),
        (["train", "--store", "/nowhere"], "no store at /nowhere: make one with 'mvl convert"),
        (["train", "--store", "STORE", "--task", "Task99"], "unknown task 'Task99'"),
        (["train", "--store", "STORE", "--task", "91", "--fold", "9"], "fold 9 does not exist"),
        (["train", "--store", "STORE", "--task", "91", "--donor", "gpt9"], "donor 'gpt9'"),
        (["train", *PHANTOM, "--launcher", "h100x9"], "known: a100x8"),
        (["train", *PHANTOM, "--launcher"], "argument --launcher: expected one argument"),
        (["train", "--preset", "smok"], "known presets are paper"),
        (["evaluate", "/nowhere"], "/nowhere: no such folder, and no MLflow run id"),
        (["verify", "--store", "/nowhere"], "no store at /nowhere"),
        (["sync", "/nowhere"], "no run of"),
        (["convert", "--msd-root", "/nowhere", "--store", "/tmp/x"], "/nowhere"),
        (["weights", "extract", "--source", "gpt9", "--output", "/tmp/x"], "donor 'gpt9'"),
    ],
)
def test_a_users_mistake_is_one_line_and_a_status(
    arguments: list[str], reason: str, phantom_store: Path
) -> None:
    arguments = [str(phantom_store) if word == "STORE" else word for word in arguments]
    if "--donor" in arguments:
        arguments += ["--grid", "16", "16", "16"]
    done = mvl(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("below", ["", "/folder"])
@pytest.mark.parametrize("command", ["convert", "phantom", "unpack"])
def test_a_file_where_a_folder_should_be_is_one_line(
    command: str, below: str, phantom_root: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    target = f"{tmp_path / 'file'}{below}"
    arguments = {
        "convert": ("--msd-root", str(phantom_root), "--store", target),
        "phantom": ("--msd-root", target),
        "unpack": (str(tmp_path / "file"), "--msd-root", target),
    }[command]
    done = mvl(command, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "file") in done.stderr
    assert (tmp_path / "file").read_text() == "not a folder"


def test_mistakes_of_a_run_are_found_without_torch(phantom_store: Path) -> None:
    code = (
        "import sys; from mvl_dist.cli import main; "
        f"main(['train', '--store', {str(phantom_store)!r}, '--task', '77']); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_a_flag_that_does_not_exist_is_said_without_a_trace() -> None:
    done = mvl("train", "--epoch", "3")
    assert done.returncode == 2
    assert "--epoch" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_says_what_the_main_job_still_needs(tmp_path: Path) -> None:
    done = mvl("doctor", "--store", str(tmp_path / "none"), cwd=tmp_path)
    assert done.returncode == 1  # no store there, whatever else this machine has
    for word in ("torch", "CPU", "Triton", "DeepSpeed ops", "Slurm", "donor smollm2-135m", "store"):
        assert word in done.stdout
    assert "mvl convert --msd-root DIR --store" in done.stdout


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU")
def test_training_on_the_cpu_must_be_asked_for(phantom_store: Path) -> None:
    done = mvl("train", *(str(phantom_store) if word == "STORE" else word for word in PHANTOM))
    assert done.returncode == 1
    assert done.stderr == "error: no GPU here: pass --launcher cpu2 to train on two CPU ranks\n"


def test_nodes_agree_on_the_first_ones_address_and_count_their_ranks() -> None:
    nodes = launch.Nodes(4, 2, "n1:29500")
    command = " ".join(launch.launch_command("cpu2", "train.py", [], nodes=nodes))
    for words in (
        "--num_machines 4 --machine_rank 2",
        "--main_process_ip n1 --main_process_port 29500",
        "--num_processes 8",
    ):
        assert words in command
    with pytest.raises(UserError, match="--head ADDRESS:PORT of the first node is needed"):
        launch.main(["--nodes", "2"])


def test_start_up_is_quick() -> None:
    """Not a benchmark: far above what is measured (0.1 s), far below an import of torch."""
    started = time.monotonic()
    mvl("--help")
    assert time.monotonic() - started < 1.0
