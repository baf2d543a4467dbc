import dataclasses
import json
from pathlib import Path

import pytest
import torch

from mvl_dist.config import OptimConfig
from mvl_dist.metrics import metric_name
from mvl_dist.optimizing import adam, learning_rate

CONFIGS = Path(__file__).resolve().parent.parent / "deepspeed_configs"


def test_the_papers_learning_rate_is_constant() -> None:
    assert {learning_rate(OptimConfig(), step, 10) for step in range(100)} == {2e-3}


def test_warm_up_rises_in_equal_steps_and_then_stays() -> None:
    optim = dataclasses.replace(OptimConfig(), lr=1.0, warmup_epochs=0.5)
    rates = [learning_rate(optim, step, steps_per_epoch=8) for step in range(6)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


def test_region_names_become_names_that_mlflow_takes() -> None:
    assert metric_name("non-enhancing tumor (NET)") == "non-enhancing tumor _NET_"


def after_three_steps(device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(64, generator=generator))
    optimizer = adam([weight], 2e-3, device)
    assert optimizer.param_groups[0]["fused"] is (True if device == "cuda" else None)
    for _ in range(3):
        weight.grad = torch.randn(64, generator=generator)
        optimizer.step()
    return weight.detach()


def test_adam_is_fused_on_a_gpu_and_bit_for_bit_the_plain_one_on_a_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, generator=generator)
    mean, square = torch.zeros(64), torch.zeros(64)
    for step in range(1, 4):  # Kingma and Ba, 2015, algorithm 1
        gradient = torch.randn(64, generator=generator)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        deviation = (square / (1 - 0.999**step)).sqrt() + 1e-8
        weight = weight - 2e-3 * mean / (1 - 0.9**step) / deviation
    for device in ("cpu", "cuda"):  # torch has the fused one for CPU tensors too
        torch.testing.assert_close(after_three_steps(device), weight, rtol=1e-5, atol=1e-7)
    generator = torch.Generator().manual_seed(0)
    plain = torch.nn.Parameter(torch.randn(64, generator=generator))
    optimizer = torch.optim.Adam([plain], lr=2e-3, foreach=False, fused=False)
    for _ in range(3):
        plain.grad = torch.randn(64, generator=generator)
        optimizer.step()
    assert torch.equal(after_three_steps("cpu"), plain)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_gradients_are_sent_in_small_buckets_while_backward_goes_on(path: Path) -> None:
    zero = json.loads(path.read_text())["zero_optimization"]
    assert zero["overlap_comm"] is True
    assert zero["contiguous_gradients"] is True
    # 20 MB in float32: ViT-MLP's 220 M trained values are 44 messages, not one at the end.
    assert zero["reduce_bucket_size"] == 5_000_000
