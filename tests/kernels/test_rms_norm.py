"""RMSNorm of x + residual: transformers' own RMSNorm, in one pass and with one tensor kept."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mvl_dist.kernels import rms_norm
from tests.kernels.checking import DTYPES, Draw, check, few, kept_bytes, on_gpu
from tests.kernels.interpreter import DEVICE

EPS = 1e-5


def llama_norm(weight: Tensor) -> torch.nn.Module:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    module = LlamaRMSNorm(len(weight), eps=EPS).to(weight.device, weight.dtype)
    module.weight.data.copy_(weight.data)
    return module


def exactly(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """torch's RMSNorm in float64."""
    s = x if residual is None else x + residual
    y = torch.nn.functional.rms_norm(s, weight.shape, weight, eps)
    return y, s


def test_the_reference_is_the_norm_of_transformers() -> None:
    draw = Draw(0, torch.float32)
    x, weight = draw.normal(2, 7, 48), draw.normal(48)
    expected = llama_norm(weight)(x)
    for way in (rms_norm.reference, rms_norm.torch_fast):
        torch.testing.assert_close(way(x, weight, EPS)[0], expected, rtol=1e-6, atol=1e-6)


@few
@given(
    st.integers(1, 3), st.integers(1, 70), st.integers(8, 300), st.sampled_from(DTYPES),
    st.booleans(), st.booleans(), st.integers(0, 2**32),
)  # fmt: skip
def test_the_kernel_is_the_norm_in_float64(
    batch: int, length: int, width: int, dtype: torch.dtype, add: bool, trained: bool, seed: int
) -> None:
    draw = Draw(seed, dtype)
    x, weight = draw.normal(batch, length, width), draw.normal(width, trained=trained)
    residual = draw.normal(batch, length, width) if add else None
    check(rms_norm, x, weight, EPS, residual, exact=exactly)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_may_lie_apart(dtype: torch.dtype) -> None:
    draw = Draw(1, dtype)
    x, residual = draw.strided(2, 9, 33), draw.strided(2, 9, 33)
    check(rms_norm, x, draw.normal(33), EPS, residual, exact=exactly)


def test_a_residual_that_nothing_reads_has_no_say() -> None:
    draw = Draw(2, torch.float32)
    x, residual, weight = draw.normal(3, 20), draw.normal(3, 20), draw.normal(20)
    for index in (0, 1):  # only the norm is used, or only the sum
        got = torch.autograd.grad(
            rms_norm.triton_fused(x, weight, EPS, residual)[index].sum(), x, allow_unused=True
        )
        expected = torch.autograd.grad(rms_norm.reference(x, weight, EPS, residual)[index].sum(), x)
        torch.testing.assert_close(got, expected)


def test_only_the_sum_is_kept_for_backward() -> None:
    draw = Draw(3, torch.bfloat16)
    x, residual = draw.normal(64, 128), draw.normal(64, 128)
    weight = draw.normal(128, trained=False)
    module = llama_norm(weight).requires_grad_(False)

    def eager(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        s = x + residual
        return module(s), s

    ours = kept_bytes(rms_norm.triton_fused, x, weight, EPS, residual, but=(weight,))
    theirs = kept_bytes(eager, x, residual, but=(module.weight,))
    assert ours == x.numel() * 2
    assert theirs > 2 * ours


def test_what_the_kernel_cannot_do_is_said() -> None:
    x, weight = torch.ones(2, 8, device=DEVICE), torch.ones(8, device=DEVICE)
    assert "float64" in rms_norm.cannot(x.double(), weight.double(), EPS)
    assert "bfloat16" in rms_norm.cannot(x.bfloat16(), weight, EPS)
    wide = torch.ones(1, 20000, device=DEVICE)
    assert "20000" in rms_norm.cannot(wide, wide[0], EPS)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_at_the_size_of_a_training_step(dtype: torch.dtype) -> None:
    draw = Draw(4, dtype)
    x, residual = draw.normal(4, 4096, 4096), draw.normal(4, 4096, 4096)
    check(rms_norm, x, draw.normal(4096, trained=False), EPS, residual, exact=exactly)
