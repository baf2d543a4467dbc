"""A frozen linear in FP8: what its rounding costs, and that nothing else is lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mvl_dist.kernels import fp8_linear
from tests.kernels.checking import (
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

BF16 = torch.bfloat16


def case(draw: Draw, *shape: int, columns: int) -> tuple[Tensor, fp8_linear.FrozenFP8, Tensor]:
    weight = draw.normal(columns, shape[-1], trained=False)
    return draw.normal(*shape), fp8_linear.freeze(weight), draw.normal(columns)


def test_a_number_loses_at_most_half_of_its_last_bit() -> None:
    rows = Draw(0, torch.float64).normal(64, 200, trained=False)
    rows[3] = 0
    values, scale = fp8_linear.quantise(rows)
    assert values.float().abs().amax(1)[4:].eq(448).all()
    error = (values.double() * scale - rows).abs()
    # e4m3: three bits behind the point, and below 2^-6 a fixed step of 2^-9.
    assert (error <= (rows.abs() / 16).maximum(scale * 2**-10) * (1 + 1e-6)).all()
    assert error[3].eq(0).all()


def test_every_row_is_scaled_by_itself() -> None:
    rows = torch.tensor([[1.0, 2.0], [1000.0, 2000.0]])
    values, scale = fp8_linear.quantise(rows)
    torch.testing.assert_close(values.float() * scale, rows, rtol=1e-6, atol=0)


def test_the_product_is_within_its_roundings_of_the_exact_one() -> None:
    draw = Draw(1, torch.float64)
    weight = draw.normal(96, 128, trained=False)
    x, bias = draw.normal(2, 40, 128), draw.normal(96)
    got = results(fp8_linear.reference, x, fp8_linear.freeze(weight), bias)
    exact = results(torch.nn.functional.linear, x, weight, bias)
    for index in (0, 1):  # y and dx: two factors, each rounded by up to 1/16, 2.6 % in the mean
        assert 0.02 < relative_error(got[index], exact[index]) < 0.045
    torch.testing.assert_close(got[2], exact[2])


@few
@given(
    st.integers(1, 3), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9),
    st.integers(0, 2**32),
)  # fmt: skip
def test_both_ways_are_the_product_of_the_same_fp8_values(
    batch: int, length: int, depth: int, columns: int, seed: int
) -> None:
    arguments = case(Draw(seed, BF16), batch, length, 16 * depth, columns=16 * columns)
    check(fp8_linear, *arguments)
    doubles = (as_double(arguments[0]), arguments[1], as_double(arguments[2]))
    exact = results(fp8_linear.reference, *doubles)
    for got, right in zip(results(fp8_linear.torch_fast, *arguments), exact, strict=True):
        assert relative_error(got, right) < 1e-2


@pytest.mark.parametrize("way", [fp8_linear.torch_fast, fp8_linear.triton_fused])
def test_x_may_be_strided(way: Any) -> None:
    draw = Draw(2, BF16)
    _, frozen, bias = case(draw, 1, 48, columns=32)
    x = draw.strided(2, 7, 48)
    expected = results(fp8_linear.reference, x.detach().clone().requires_grad_(), frozen, bias)
    for got, right in zip(results(way, x, frozen, bias), expected, strict=True):
        torch.testing.assert_close(got, right, rtol=2e-2, atol=2e-2)


def test_no_activation_is_kept_for_backward() -> None:
    x, frozen, bias = case(Draw(3, BF16), 64, 128, columns=32)
    kept = kept_bytes(fp8_linear.triton_fused, x, frozen, bias, but=tuple(frozen.transposed))
    assert kept == 0


def test_what_it_cannot_do_is_said() -> None:
    x, frozen, bias = case(Draw(4, BF16), 5, 32, columns=48)
    assert "float32" in fp8_linear.cannot(x.float(), frozen, bias)
    odd = fp8_linear.freeze(torch.ones(5, 32, device=DEVICE))
    assert "5 x 32" in fp8_linear.cannot(x, odd, None)


@pytest.mark.gpu
@on_gpu
def test_at_the_size_of_a_training_step() -> None:
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("FP8 products need Hopper (sm_90)")
    check(fp8_linear, *case(Draw(5, BF16), 1, 4096, 4096, columns=14336))
