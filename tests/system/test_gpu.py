"""The A100 path on whatever CUDA device there is: bf16, nccl, pinned batches."""

from pathlib import Path

import pytest
import torch

from tests.system.launching import curve, launch, tags

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_one_gpu_trains_in_bf16_and_is_scored(arguments: list[str], tmp_path: Path) -> None:
    output = ["--epochs", "5", "--workers", "2", "--output", str(tmp_path)]
    done = launch([*arguments, *output], config="gpu1", DS_ACCELERATOR="cuda")
    assert done.code == 0, done.errors
    assert tags(tmp_path)["precision"] == "bfloat16"
    losses = list(curve(tmp_path).values())
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
