"""What a launcher's configs ask for is checked before a rank is started."""

import json
import shutil
from pathlib import Path

import pytest

from mvl_dist import launch, launcher
from mvl_dist.errors import UserError
from tests.test_cli import PHANTOM, mvl

REPO = Path(__file__).resolve().parent.parent
on_cpu = pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU")


def zero2(tmp_path: Path, **changes: object) -> Path:
    """zero2-cpu.json with other settings; None takes one out."""
    settings = json.loads((REPO / "deepspeed_configs" / "zero2-cpu.json").read_text()) | changes
    path = tmp_path / "zero2.json"
    path.write_text(
        json.dumps({key: value for key, value in settings.items() if value is not None})
    )
    return path


def test_launchers_are_found_by_name_and_name_a_sound_deepspeed_config() -> None:
    for path in sorted((REPO / "accelerate_configs").glob("*.yaml")):
        config = launcher.launcher_config(path.stem)
        assert config == path
        file = launcher.deepspeed_config(config)
        assert launcher.deepspeed_settings(file)["zero_optimization"]["stage"] == 2
    with pytest.raises(UserError, match="names no deepspeed_config"):
        launcher.deepspeed_config(REPO / "constraints.txt")


def test_every_deepspeed_config_of_the_project_is_sound() -> None:
    for path in sorted((REPO / "deepspeed_configs").glob("*.json")):
        stage = launcher.deepspeed_settings(path)["zero_optimization"]["stage"]
        assert path.stem.startswith(f"zero{stage}")


def test_more_ranks_than_gpus_are_refused_before_anything_is_launched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,5")
    with pytest.raises(UserError, match="a100x8 starts 8 ranks on a node, and 3 GPUs are visible"):
        launch.launch_command("a100x8", "train.py", [])
    assert "--num_processes" in launch.launch_command("a100x8", "train.py", [], ranks=3)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"zero_optimization": None}, "names no zero_optimization.stage: without it DeepSpeed"),
        (
            {"zero_optimization": None, "zero_optimisation": {"stage": 2}},
            r"names no zero_optimization.stage \(it has 'zero_optimisation'\)",
        ),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage 4 is not 0 to 3"),
        ({"fp16": {"enabled": True}}, "asks for fp16.*use bf16"),
        ({"bf16": True}, r"bf16 takes ..enabled.: true., not True"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps is 4.*--batch-size"),
    ],
)
def test_a_deepspeed_config_that_would_not_do_what_it_says_is_refused(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        launcher.deepspeed_settings(zero2(tmp_path, **changes))


@on_cpu
def test_a_gpu_config_without_a_gpu_is_refused_before_anything_is_launched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    with pytest.raises(UserError, match="asks for bf16 on CUDA, and no GPU is visible here"):
        launch.launch_command("gpu1", "train.py", [])
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")  # which asks for it by name
    assert launch.launch_command("gpu1", "train.py", [])


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_launched(
    phantom_store: Path, tmp_path: Path
) -> None:
    run = [str(phantom_store) if word == "STORE" else word for word in PHANTOM]
    output = ("--output", str(tmp_path))
    done = mvl("train", "--launcher", "cpu2", *run, *output, "--batch-size", "3")
    assert done.returncode == 1
    assert done.stderr == "error: --batch-size 3 does not divide among 2 ranks: 2 or 4 does\n"
    assert not list(tmp_path.iterdir())


def test_a_study_with_a_batch_that_does_not_divide_is_refused_before_its_first_run(
    phantom_store: Path, tmp_path: Path
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        "preset: smoke\nset: {data: {grid: [16, 16, 16]}, optim: {batch_size: 3}}\n"
        "tasks: [Task91_PhantomTumour]\ntables: {only: {models: [vit_baseline]}}\n"
    )
    where = ("--store", str(phantom_store), "--output", str(tmp_path / "runs"))
    done = mvl("study", "run", str(file), "--launcher", "cpu2", *where)
    assert done.returncode == 1
    assert done.stderr == "error: --batch-size 3 does not divide among 2 ranks: 2 or 4 does\n"
    assert not (tmp_path / "runs").exists()


def test_a_launcher_of_ones_own_is_taken_from_where_it_lies(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    shutil.copy(REPO / "accelerate_configs" / "cpu2.yaml", own)
    assert str(own) in launch.launch_command(str(own), "train.py", [])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("# A page\n\nof text: with: colons\n", "not an accelerate config; start from"),
        ("just words", "not an accelerate config; start from"),
        ("num_machines: 1\n", "num_processes must be a number above 0, not None"),
        ("num_processes: two\n", "num_processes must be a number above 0, not 'two'"),
    ],
)
def test_a_file_that_is_no_launcher_is_one_line(
    tmp_path: Path, phantom_store: Path, text: str, reason: str
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    run = [str(phantom_store) if word == "STORE" else word for word in PHANTOM]
    done = mvl("train", "--launcher", str(file), *run)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {file}")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
