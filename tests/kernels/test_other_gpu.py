"""Every kernel runs where its tensors are, on a GPU that is not the current one too."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from mvl_dist.kernels import (
    dice_bce,
    fp8_linear,
    gqa_attention,
    layer_norm,
    layer_norm_linear,
    lora_linear,
    rms_norm,
    short_head_attention,
    swiglu,
)
from tests.kernels.checking import Draw, relative_error, results

OTHER = torch.device("cuda", 1)
EPS = 1e-5


def linear_of_norm(draw: Draw) -> tuple[Any, ...]:
    weights = draw.normal(64), draw.normal(64)
    return draw.normal(2, 40, 64), *weights, EPS, draw.normal(192, 64), draw.normal(192)


def adapted(draw: Draw) -> tuple[Any, ...]:
    weight = draw.normal(48, 64, trained=False)
    return draw.normal(2, 40, 64), [
        lora_linear.Part(weight, None, draw.normal(8, 64), draw.normal(48, 8), 2.0)
    ]


def grouped(draw: Draw) -> tuple[Any, ...]:
    return tuple(draw.normal(1, 70, heads, 64) for heads in (4, 2, 2))


CASES: dict[ModuleType, Callable[[Draw], tuple[Any, ...]]] = {
    short_head_attention: lambda draw: (draw.normal(1, 70, 3, 3, 16),),
    gqa_attention: grouped,
    lora_linear: adapted,
    rms_norm: lambda draw: (draw.normal(2, 9, 64), draw.normal(64), EPS, draw.normal(2, 9, 64)),
    layer_norm: lambda draw: (draw.normal(9, 64), draw.normal(64), draw.normal(64), EPS),
    layer_norm_linear: linear_of_norm,
    swiglu: lambda draw: (draw.normal(2, 9, 128),),
    dice_bce: lambda draw: (draw.normal(2, 1, 8, 8, 8), draw.normal(2, 1, 8, 8, 8) > 0.5),
    fp8_linear: lambda draw: (
        draw.normal(40, 64),
        fp8_linear.freeze(draw.normal(48, 64, trained=False)),
        draw.normal(48),
    ),
}


def on(device: torch.device, leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.detach().to(device).requires_grad_(leaf.requires_grad)
    return leaf


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
@pytest.mark.parametrize("operation", CASES, ids=lambda operation: operation.__name__[17:])
def test_it_runs_on_a_gpu_that_is_not_the_current_one(operation: ModuleType) -> None:
    given = CASES[operation](Draw(0, torch.bfloat16))
    moved = tree_map(lambda leaf: on(OTHER, leaf), given)
    reason = operation.cannot(*moved)
    if operation is fp8_linear and reason:
        pytest.skip(reason)
    expected, got = results(operation.torch_fast, *given), results(operation.triton_fused, *moved)
    assert all(leaf.device == OTHER for leaf in tree_leaves(got))
    for mine, right in zip(got, expected, strict=True):
        assert relative_error(mine.cpu(), right.cpu()) < 2e-2
