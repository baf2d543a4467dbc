"""Kernels under DeepSpeed, in Triton's interpreter: the same run and curve, other operations."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.system.launching import curve, deepspeed_config, launch, run_folder, tags

pytestmark = [pytest.mark.tworank, pytest.mark.slow]

# Sums are formed in another order: float32 rounding, grown over the steps.
RELATIVE_TOLERANCE = 5e-4


# As small as the kernels take it: the interpreter is slow.
TINY = {
    **{"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "rms_norm_eps": 1e-5},
    **{"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64},
}


@pytest.fixture(scope="module")
def without_dropout(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    shape = tmp_path_factory.mktemp("shape") / "config.json"
    shape.write_text(json.dumps(TINY))
    return [
        *(*arguments, "--dropout", "0", "--epochs", "1", "--donor", f"random:{shape}"),
        *("--patch", "8", "8", "8", "--depth", "1", "--llm-position", "1", "--target", "binary"),
    ]


def test_two_ranks_with_kernels_follow_the_curve_of_two_without_and_it_is_the_same_run(
    without_dropout: list[str], tmp_path: Path
) -> None:
    found, weights = [], []
    for kernels in ("auto", "triton"):
        output = tmp_path / kernels
        flags = [*without_dropout, "--output", str(output), "--kernels", kernels]
        done = launch(flags, TRITON_INTERPRET="1")
        assert done.code == 0, done.errors
        found.append((run_folder(output).name, curve(output), curve(output, "val_loss")))
        weights.append(load_file(run_folder(output) / "best.safetensors"))
        said = {"auto": "auto: torch on a CPU", "triton": "triton"}[kernels]
        assert tags(output)["kernels"] == said
        assert f"float32, kernels {said}" in done.output
    (name, losses, validation), (other_name, other_losses, other_validation) = found
    assert name == other_name
    assert other_losses == pytest.approx(losses, rel=RELATIVE_TOLERANCE)
    assert other_validation == pytest.approx(validation, rel=RELATIVE_TOLERANCE)
    # On as many ranks, whose sums would differ too: so other operations have run. Losses, means
    # over a batch's voxels, may agree to the bit.
    assert weights[0].keys() == weights[1].keys()
    assert not all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU")
def test_triton_without_a_gpu_is_one_line_and_leaves_nothing(
    without_dropout: list[str], tmp_path: Path
) -> None:
    flags = [*without_dropout, "--output", str(tmp_path), "--kernels", "triton"]
    done = launch(flags, ranks=1, TRITON_INTERPRET=None)
    assert "--kernels triton: no CUDA device is visible here" in done.one_line()
    assert not list(tmp_path.rglob("config.yaml"))


def test_weights_that_zero_3_partitions_are_no_ones_to_fuse(
    without_dropout: list[str], tmp_path: Path
) -> None:
    flags = [*without_dropout, "--output", str(tmp_path), "--kernels", "triton"]
    done = launch(flags, 1, deepspeed_config(tmp_path, 3), TRITON_INTERPRET="1")
    assert "ZeRO-3 partitions its weights" in done.one_line()
    assert "--kernels auto" in done.one_line()
