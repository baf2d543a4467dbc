"""LayerNorm of x + residual: torch's LayerNorm, in one pass and with one tensor kept."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mvl_dist.kernels import layer_norm
from tests.kernels.checking import DTYPES, Draw, check, few, kept_bytes, on_gpu
from tests.kernels.interpreter import DEVICE

EPS = 1e-5


def exactly(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """torch's LayerNorm in float64."""
    s = x if residual is None else x + residual
    y = torch.nn.functional.layer_norm(s, weight.shape, weight, bias, eps)
    return y, s


def test_the_reference_is_the_norm_of_torch() -> None:
    draw = Draw(0, torch.float64)
    x, weight, bias = draw.normal(2, 7, 48), draw.normal(48), draw.normal(48)
    expected = exactly(x, weight, bias, EPS)[0]
    got = layer_norm.reference(x, weight, bias, EPS)[0]
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@few
@given(
    st.integers(1, 3), st.integers(1, 70), st.integers(8, 300), st.sampled_from(DTYPES),
    st.booleans(), st.integers(0, 2**32),
)  # fmt: skip
def test_the_kernel_is_the_norm_in_float64(
    batch: int, length: int, width: int, dtype: torch.dtype, add: bool, seed: int
) -> None:
    draw = Draw(seed, dtype)
    x, weight, bias = draw.normal(batch, length, width), draw.normal(width), draw.normal(width)
    residual = draw.normal(batch, length, width) if add else None
    check(layer_norm, x, weight, bias, EPS, residual, exact=exactly)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_may_lie_apart(dtype: torch.dtype) -> None:
    draw = Draw(1, dtype)
    x, residual = draw.strided(2, 9, 33), draw.strided(2, 9, 33)
    check(layer_norm, x, draw.normal(33), draw.normal(33), EPS, residual, exact=exactly)


def test_a_large_mean_does_not_drown_the_deviation() -> None:
    draw = Draw(2, torch.float32)
    x = (draw.normal(5, 64, trained=False) + 1000).requires_grad_()
    got = layer_norm.triton_fused(x, draw.normal(64), draw.normal(64), EPS)[0]
    draw = Draw(2, torch.float32)
    draw.normal(5, 64)
    double = (x.double(), draw.normal(64).double(), draw.normal(64).double())
    torch.testing.assert_close(got.double(), exactly(*double, EPS)[0], rtol=1e-3, atol=1e-3)


def test_only_the_sum_is_kept_for_backward() -> None:
    draw = Draw(3, torch.bfloat16)
    x, residual = draw.normal(64, 128), draw.normal(64, 128)
    weight, bias = draw.normal(128), draw.normal(128)
    ours = kept_bytes(layer_norm.triton_fused, x, weight, bias, EPS, residual, but=(weight,))
    theirs = kept_bytes(layer_norm.torch_fast, x, weight, bias, EPS, residual, but=(weight, bias))
    assert ours == x.numel() * 2
    assert theirs > ours  # mean and deviation of every row besides


def test_what_the_kernel_cannot_do_is_said() -> None:
    x, weight = torch.ones(2, 8, device=DEVICE), torch.ones(8, device=DEVICE)
    assert "float64" in layer_norm.cannot(x.double(), weight.double(), weight.double(), EPS)
    assert "bfloat16" in layer_norm.cannot(x, weight, weight.bfloat16(), EPS)
    wide = torch.ones(1, 20000, device=DEVICE)
    assert "20000" in layer_norm.cannot(wide, wide[0], wide[0], EPS)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_at_the_size_of_a_training_step(dtype: torch.dtype) -> None:
    draw = Draw(4, dtype)
    x, residual = draw.normal(4, 4096, 64), draw.normal(4, 4096, 64)
    check(layer_norm, x, draw.normal(64), draw.normal(64), EPS, residual, exact=exactly)
