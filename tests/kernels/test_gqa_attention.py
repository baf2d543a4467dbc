"""Grouped-query attention: float64 attention, and that of the language model's own block."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mvl_dist.kernels import gqa_attention
from tests.kernels.attention_cases import SMALL, fewer, tiles
from tests.kernels.checking import (
    DTYPES,
    HALVES,
    LARGEST_ERROR,
    Draw,
    as_double,
    check,
    kept_bytes,
    on_gpu,
    poisoned,
    relative_error,
    results,
)
from tests.kernels.interpreter import DEVICE


def drawn(
    seed: int, dtype: torch.dtype, batch: int, length: int, kv_heads: int, group: int, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    draw = Draw(seed, dtype)
    q = draw.normal(batch, length, kv_heads * group, size)
    return q, *(draw.normal(batch, length, kv_heads, size) for _ in range(2))


def test_the_reference_is_the_attention_of_transformers() -> None:
    from transformers.integrations.sdpa_attention import repeat_kv

    q, k, v = drawn(0, torch.float64, 2, 11, 2, 3, 64)
    turned = [x.transpose(1, 2) for x in (q, k, v)]
    keys, values = (repeat_kv(x, 3) for x in turned[1:])
    expected = ((turned[0] @ keys.mT / 8).softmax(-1) @ values).transpose(1, 2)
    for way in (gqa_attention.reference, gqa_attention.torch_fast):
        torch.testing.assert_close(way(q, k, v), expected, rtol=1e-10, atol=1e-12)


@fewer
@given(
    st.integers(1, 2), st.integers(2, 90), st.integers(1, 2), st.integers(1, 4),
    st.sampled_from(gqa_attention.HEAD_SIZES), st.sampled_from(DTYPES), st.integers(0, 2**32),
)  # fmt: skip
def test_the_kernel_is_attention_in_float64(
    batch: int, length: int, kv_heads: int, group: int, size: int, dtype: torch.dtype, seed: int
) -> None:
    with tiles(*SMALL):
        check(gqa_attention, *drawn(seed, dtype, batch, length, kv_heads, group, size))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_that_is_alone_attends_to_itself(dtype: torch.dtype) -> None:
    """Its probability is 1 whatever q and k are: their gradients are 0."""
    q, k, v = drawn(5, dtype, 2, 1, 2, 3, 64)
    with tiles(*SMALL), poisoned():
        o, dq, dk, dv = results(gqa_attention.triton_fused, q, k, v)
    exact = results(gqa_attention.reference, *map(as_double, (q, k, v)))
    assert torch.equal(o, v.detach().repeat_interleave(3, 2))
    assert relative_error(dv, exact[3]) < LARGEST_ERROR[dtype]
    # What cancels is of the order of 1, and is summed in float32.
    assert max(dq.abs().max(), dk.abs().max()) < 1e-5


def test_the_tile_that_comes_first_is_attention_too() -> None:
    check(gqa_attention, *drawn(1, torch.bfloat16, 1, 150, 1, 2, 128))


@pytest.mark.parametrize("dtype", HALVES)
def test_q_k_and_v_may_be_views_of_one_matrix(dtype: torch.dtype) -> None:
    packed = Draw(2, dtype).normal(2, 33, 8 * 64)
    heads = [x.unflatten(2, (-1, 64)) for x in packed.split([4 * 64, 2 * 64, 2 * 64], 2)]
    assert not any(x.is_contiguous() for x in heads)
    # Also as (B, heads, T, D) seen as (B, T, heads, D), as transformers hands them over.
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in heads]
    for q, k, v in (heads, turned):
        with tiles(*SMALL):
            check(gqa_attention, *(x.detach().requires_grad_() for x in (q, k, v)))


def test_backward_keeps_the_output_and_a_number_a_row() -> None:
    q, k, v = drawn(3, torch.bfloat16, 1, 40, 1, 2, 64)
    with tiles(*SMALL):
        assert kept_bytes(gqa_attention.triton_fused, q, k, v, but=(q, k, v)) == (
            40 * 2 * 64 * 2 + 2 * 128 * 4
        )


@pytest.mark.parametrize(
    ("q", "k", "reason"),
    [
        ((1, 9, 4, 80), (1, 9, 2, 80), "heads of 80"),
        ((1, 9, 5, 64), (1, 9, 2, 64), "do not belong together"),
        ((1, 9, 4, 64), (1, 8, 2, 64), "do not belong together"),
        ((1, 4, 64), (1, 2, 64), "not (B, T, heads, D)"),
    ],
)
def test_it_says_what_it_cannot_take(q: tuple[int, ...], k: tuple[int, ...], reason: str) -> None:
    given_q, given_k = torch.zeros(q, device=DEVICE), torch.zeros(k, device=DEVICE)
    assert reason in gqa_attention.cannot(given_q, given_k, given_k)
    with pytest.raises(ValueError, match="gqa_attention"):
        gqa_attention.triton_fused(given_q, given_k, given_k)


SIZES = [(4, 4096, 8, 4, 128), (1, 4096, 8, 4, 128), (16, 4096, 8, 4, 128), (4, 4096, 3, 3, 64)]
"""(B, T, kv_heads, group, D) that matter: Llama-3.1-8B at batch 4, 1 and 16, and SmolLM2-135M."""


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("size", [SIZES[1], SIZES[3], (1, 1000, 8, 4, 128)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu_at_real_sizes(size: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    q, k, v = drawn(4, dtype, *size)
    doubles = [x.detach().double().requires_grad_() for x in (q, k, v)]
    exact = results(gqa_attention.torch_fast, *doubles)
    with poisoned():
        got = results(gqa_attention.triton_fused, q, k, v)
    theirs = results(gqa_attention.torch_fast, q, k, v)
    for mine, other, right in zip(got, theirs, exact, strict=True):
        error = relative_error(mine, right)
        assert error < (1e-3 if dtype == torch.float32 else 1e-2)
        if dtype in HALVES:
            assert error < 1.1 * relative_error(other, right) + 2e-4
