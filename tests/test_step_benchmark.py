"""`benchmarks/step.py` runs to its end on a CPU, with what a bare GPU machine has installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPO = Path(__file__).resolve().parent.parent
# What the benchmark must do without: a GPU machine may have torch, Triton, transformers and peft.
BLOCKED = ("deepspeed", "monai", "tyro", "mlflow", "zarr", "nibabel", "gguf", "matplotlib")
RUN = """
import runpy, sys
sys.modules |= dict.fromkeys(sys.argv[1].split(","))
sys.argv = ["benchmarks/step.py", *sys.argv[2:]]
runpy.run_path("benchmarks/step.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("step") / "step.json"
    flags = ["--device", "cpu", "--quick", "--variants", "naive", "eager", "liger", "ours"]
    flags += ["fp8", "int8"]
    done = subprocess.run(
        [sys.executable, "-c", RUN, ",".join(BLOCKED), *flags, "--json", str(path)],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "draw it with" in done.stdout  # matplotlib is not there
    return path


def test_every_way_of_a_step_computes_the_same_and_has_its_figures(result: Path) -> None:
    found = json.loads(result.read_text())
    assert "not a GPU" in found["about"]["device"]
    assert found["left_out"] == []
    exact = [row for row in found["rows"] if row["variant"] not in ("fp8", "int8")]
    timed = [row for row in exact if row["ms"]]
    steps = {(r["what"], r["variant"], r["batch"]) for r in timed if r["whole"]}
    models, batches = ("medvisionllama", "vit_baseline"), (1, 2)
    ways = ("naive", "eager", "ours")
    assert steps == {(m, v, b) for m in models for v in ways for b in batches}
    for row in timed:
        assert row["samples_per_second"] == pytest.approx(1000 * row["batch"] / row["ms"])
        assert row["difference"] < 1e-5
        share = row["tflop"] * 1000 / row["ms"] / found["matmul_tflops"]
        assert row["of_matmul"] == pytest.approx(share)
    naive = next(r for r in timed if r["variant"] == "naive" and r["whole"])
    assert naive["difference"] > 0  # it did compute in another way
    parts = {row["what"] for row in timed if not row["whole"]}
    assert {"ViT attention, dropout 0.2", "SwiGLU", "Dice + BCE", "Adam"} <= parts
    liger = [row for row in found["rows"] if row["variant"] == "liger"]
    assert liger
    # Absent, or there but for GPUs only: a row says which, and has no time.
    assert all(row["note"] and not row["ms"] for row in liger)


def test_a_block_in_eight_bits_is_timed_and_its_error_shown(result: Path) -> None:
    rows = json.loads(result.read_text())["rows"]
    found = {row["variant"]: row for row in rows if row["variant"] in ("fp8", "int8")}
    assert len([row for row in rows if row["variant"] in found]) == 2  # one model, one size
    for row in found.values():
        assert (row["what"], row["batch"], row["whole"]) == ("medvisionllama", 2, True)
        assert row["ms"] > 0
    assert 1e-5 < found["int8"]["difference"] < found["fp8"]["difference"] < 0.2


def test_a_gpu_without_fp8_is_said_and_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.training_step.variants import missing

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert "NVIDIA A100 is sm_80, and FP8 needs sm_89" in missing("fp8", torch.device("cuda"))
    assert missing("int8", torch.device("cuda")) == ""


def test_the_table_and_the_plot_show_every_model(result: Path) -> None:
    text = result.with_suffix(".txt").read_text()
    for name in ("medvisionllama, ours", "vit_baseline, naive", "TFLOP/s", "samples/s"):
        assert name in text
    from benchmarks import step

    assert step.main(["--plot", str(result)]) == 0
    assert result.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_when_the_time_is_over_it_says_what_is_left(tmp_path: Path) -> None:
    from benchmarks import step

    path = tmp_path / "step.json"
    flags = ["--device", "cpu", "--quick", "--seconds", "0", "--json", str(path)]
    assert step.main(flags) == 0
    found = json.loads(path.read_text())
    assert not [row for row in found["rows"] if row["ms"]]
    assert "medvisionllama, ours, batch 2" in found["left_out"]
    assert (
        "No time was left for: medvisionllama, naive, batch 2"
        in path.with_suffix(".txt").read_text()
    )
