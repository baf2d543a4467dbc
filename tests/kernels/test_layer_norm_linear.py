"""LayerNorm and the linear that reads it: torch's two modules, with the norm never in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mvl_dist.kernels import layer_norm_linear
from tests.kernels.checking import (
    DTYPES,
    Draw,
    as_double,
    check,
    few,
    kept_bytes,
    on_gpu,
    relative_error,
    results,
)
from tests.kernels.interpreter import DEVICE

EPS = 1e-5


def exactly(x: Tensor, gamma: Tensor, beta: Tensor, eps: float, w: Tensor, bias: Tensor) -> Tensor:
    """torch's LayerNorm and linear in float64."""
    return F.linear(F.layer_norm(x, gamma.shape, gamma, beta, eps), w, bias)


def case(draw: Draw, x: Tensor, columns: int) -> tuple[Any, ...]:
    width = x.shape[-1]
    weight = draw.normal(columns, width, scale=width**-0.5)
    return x, draw.normal(width), draw.normal(width), EPS, weight, draw.normal(columns)


def test_the_reference_is_torchs_norm_and_linear() -> None:
    draw = Draw(0, torch.float64)
    arguments = case(draw, draw.normal(2, 7, 48), 20)
    expected = results(exactly, *arguments)
    for mine, theirs in zip(
        results(layer_norm_linear.reference, *arguments), expected, strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@few
@given(
    st.integers(1, 3), st.integers(1, 90), st.integers(8, 64), st.integers(1, 200),
    st.sampled_from(DTYPES), st.integers(0, 2**32),
)  # fmt: skip
def test_the_kernel_is_norm_and_linear_in_float64(
    batch: int, length: int, width: int, columns: int, dtype: torch.dtype, seed: int
) -> None:
    draw = Draw(seed, dtype)
    check(layer_norm_linear, *case(draw, draw.normal(batch, length, width), columns), exact=exactly)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_and_their_gradients_may_lie_apart(dtype: torch.dtype) -> None:
    draw = Draw(1, dtype)
    x, *others = case(draw, draw.strided(2, 9, 33), 48)
    check(layer_norm_linear, x, *others, exact=exactly)

    def turned(way: Any) -> Any:
        return lambda *given: way(*given).transpose(0, -1)

    exact = results(turned(exactly), *map(as_double, (x, *others)))
    got = results(turned(layer_norm_linear.triton_fused), x, *others)
    for mine, right in zip(got, exact, strict=True):
        assert relative_error(mine, right) < (1e-4 if dtype == torch.float32 else 2e-2)


def test_a_large_mean_does_not_drown_the_deviation() -> None:
    draw = Draw(2, torch.float32)
    x, *others = case(draw, draw.normal(5, 64), 16)
    got = layer_norm_linear.triton_fused(x + 1000, *others)
    exact = exactly(x.double() + 1000, *map(as_double, others))
    torch.testing.assert_close(got.double(), exact, rtol=2e-3, atol=2e-3)


def test_the_kernel_repeats_bit_for_bit() -> None:
    draw = Draw(3, torch.bfloat16)
    arguments = case(draw, draw.normal(2, 170, 64), 192)
    both = [results(layer_norm_linear.triton_fused, *arguments) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


def test_the_input_alone_is_kept_for_backward() -> None:
    draw = Draw(4, torch.bfloat16)
    arguments = case(draw, draw.normal(256, 64), 192)
    weights = tuple(one for one in arguments[1:] if isinstance(one, Tensor))
    ours = kept_bytes(layer_norm_linear.triton_fused, *arguments, but=weights)
    theirs = kept_bytes(layer_norm_linear.torch_fast, *arguments, but=weights)
    assert ours == arguments[0].numel() * 2
    assert theirs >= 2 * ours  # the normalised rows too


def test_what_the_kernel_cannot_do_is_said() -> None:
    x, one = torch.ones(2, 8, device=DEVICE), torch.ones(8, device=DEVICE)
    weight = torch.ones(3, 8, device=DEVICE)
    others = (EPS, weight, weight[:, 0])
    assert "bfloat16" in layer_norm_linear.cannot(x.bfloat16(), one, one, *others)
    wide = torch.ones(3, 65, device=DEVICE)
    assert "rows of 65" in layer_norm_linear.cannot(wide, wide[0], wide[0], EPS, wide, wide[:, 0])


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_at_the_size_of_a_training_step(dtype: torch.dtype) -> None:
    draw = Draw(5, dtype)
    check(layer_norm_linear, *case(draw, draw.normal(4, 4096, 64), 192), exact=exactly)
