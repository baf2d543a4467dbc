"""Attention of short heads on packed qkv: float64 attention, and what its dropout drops."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mvl_dist.kernels import _triton_attention, short_head_attention
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


def seed_of(number: int) -> Tensor:
    return torch.tensor([number], device=DEVICE)


def test_the_reference_is_attention() -> None:
    qkv = Draw(0, torch.float64).normal(2, 13, 3, 3, 16)
    expected = results(short_head_attention.torch_fast, qkv)
    for mine, theirs in zip(results(short_head_attention.reference, qkv), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@fewer
@given(
    st.integers(1, 2), st.integers(1, 140), st.integers(1, 3),
    st.sampled_from(short_head_attention.HEAD_SIZES), st.sampled_from(DTYPES),
    st.integers(0, 2**32),
)  # fmt: skip
def test_the_kernel_is_attention_in_float64(
    batch: int, length: int, heads: int, size: int, dtype: torch.dtype, seed: int
) -> None:
    with tiles(*SMALL):
        check(short_head_attention, Draw(seed, dtype).normal(batch, length, 3, heads, size))


def test_the_tile_that_comes_first_is_attention_too() -> None:
    check(short_head_attention, Draw(1, torch.bfloat16).normal(1, 150, 3, 1, 16))


@pytest.mark.parametrize("dtype", HALVES)
def test_tokens_and_samples_may_lie_apart(dtype: torch.dtype) -> None:
    wide = Draw(2, dtype).normal(37, 2, 3, 3, 2, 24, trained=False)
    qkv = wide[:, :, 1, :, :, 4:20].transpose(0, 1).requires_grad_()
    assert not qkv.is_contiguous()
    with tiles(*SMALL):
        check(short_head_attention, qkv)


def test_scores_of_any_size_leave_no_nan() -> None:
    draw = Draw(3, torch.float32)
    qkv = draw.normal(1, 70, 3, 2, 16, scale=60.0)
    with tiles(*SMALL):
        got = results(short_head_attention.triton_fused, qkv)
        below = qkv.detach().clone()
        below[:, :, 0], below[:, :, 1] = -40, 40  # every score is -6,400
        flat = results(short_head_attention.triton_fused, below.requires_grad_())
    exact = results(short_head_attention.reference, as_double(qkv))
    assert relative_error(got[0], exact[0]) < 1e-3
    assert relative_error(got[1], exact[1]) < 1e-3
    mean = below[:, :, 2].mean(1, keepdim=True).expand(1, 70, 2, 16).flatten(2)
    torch.testing.assert_close(flat[0], mean.detach(), rtol=1e-4, atol=1e-3)
    assert flat[1].isfinite().all()


@fewer
@given(
    st.integers(1, 2), st.integers(1, 100), st.integers(1, 3), st.sampled_from(DTYPES),
    st.floats(0.01, 0.9), st.integers(0, 2**31),
)  # fmt: skip
def test_dropout_drops_in_both_passes_what_its_seed_says(
    batch: int, length: int, heads: int, dtype: torch.dtype, dropout: float, seed: int
) -> None:
    qkv = Draw(seed, dtype).normal(batch, length, 3, heads, 16)
    keep = short_head_attention.keep_mask(seed_of(seed), (batch, heads, length, length), dropout)

    def masked(qkv: Tensor) -> Tensor:
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        p = F.softmax(q @ k.mT / 4, dim=-1) * keep / (1 - dropout)
        return (p @ v).transpose(1, 2).flatten(2)

    way = partial(short_head_attention.triton_fused, dropout=dropout, seed=seed_of(seed))
    with tiles(*SMALL), poisoned():
        got = results(way, qkv)
    for mine, exact in zip(got, results(masked, as_double(qkv)), strict=True):
        assert relative_error(mine, exact) < LARGEST_ERROR[dtype]


def test_the_same_seed_drops_the_same_and_the_next_call_something_else() -> None:
    qkv = Draw(4, torch.float32).normal(1, 40, 3, 1, 16)
    way = partial(short_head_attention.triton_fused, qkv, 0.2)
    with tiles(*SMALL):
        assert torch.equal(way(seed=seed_of(5)), way(seed=seed_of(5)))
        assert not torch.equal(way(seed=seed_of(5)), way(seed=seed_of(6)))
        assert not torch.equal(way(), way())
        torch.manual_seed(7)
        first = way()
        torch.manual_seed(7)
        assert torch.equal(first, way())


def test_dropout_preserves_the_mean() -> None:
    qkv = Draw(8, torch.float32).normal(2, 100, 3, 3, 16, trained=False)
    qkv[:, :, 0] = 0  # every probability is 1/100
    qkv[:, :, 2] = 1
    with tiles(*SMALL):
        o = short_head_attention.triton_fused(qkv, 0.2, seed_of(9)).unflatten(2, (3, 16))[..., 0]
    # Of 600 rows, each the mean of 100 variables that are 1/0.8 with probability 0.8.
    deviation = (0.2 / 0.8 / 100) ** 0.5
    assert abs(float(o.mean()) - 1) < 5 * deviation / 600**0.5
    assert float(o.std()) == pytest.approx(deviation, rel=0.15)


@pytest.mark.parametrize("dropout", [0.1, 0.2, 0.5])
def test_what_is_dropped_depends_on_neither_row_nor_column_nor_head(dropout: float) -> None:
    keep = short_head_attention.keep_mask(torch.tensor([10]), (2, 2, 512, 512), dropout)
    z = (keep.double() - (1 - dropout)) / (dropout * (1 - dropout)) ** 0.5
    pairs = {
        "rate": z,
        "neighbouring keys": z[..., 1:] * z[..., :-1],
        "neighbouring queries": z[:, :, 1:] * z[:, :, :-1],
        "heads": z[:, 0] * z[:, 1],
        "samples": z[0] * z[1],
    }
    for shift in (1, 2, 16, 64, 128, 256):  # a hash of (row ^ column) alone would fail here
        square = z * z.roll(shift, -2)
        pairs[f"rectangles of {shift}"] = square * square.roll(shift, -1)
    for what, values in pairs.items():  # each has mean 0 and variance 1 if independent
        assert abs(float(values.mean())) * values.numel() ** 0.5 < 5, what
    for axis in (-1, -2):
        counts = z.sum(axis) / 512**0.5
        assert float(counts.var()) == pytest.approx(1, abs=0.2)


def test_the_kernel_repeats_bit_for_bit() -> None:
    qkv = Draw(11, torch.bfloat16).normal(1, 70, 3, 2, 16)
    with tiles(*SMALL):
        both = [results(short_head_attention.triton_fused, qkv) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


def test_the_gradient_may_be_one_number_for_all() -> None:
    qkv = Draw(17, torch.float32).normal(1, 20, 3, 1, 16)
    with tiles(*SMALL):
        (got,) = torch.autograd.grad(short_head_attention.triton_fused(qkv).sum(), qkv)
    (expected,) = torch.autograd.grad(short_head_attention.torch_fast(qkv).sum(), qkv)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@triton.jit
def exponentials(x_ptr, y_ptr, N: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803
    at = tl.arange(0, N)
    tl.store(y_ptr + at, _triton_attention.exp2(tl.load(x_ptr + at), True))


def test_the_exponential_of_the_fma_units_is_within_a_fiftieth_of_bfloat16() -> None:
    x = torch.linspace(-125, 8, 2**15, device=DEVICE)  # below is nothing, of whatever precision
    y = torch.empty_like(x)
    exponentials[(1,)](x, y, len(x))
    error = (y.double() / x.double().exp2() - 1).abs().max()
    assert float(error) < 2**-8 / 50
    x.fill_(-float("inf"))
    exponentials[(1,)](x, y, len(x))
    assert float(y.max()) < 2e-38


def test_backward_keeps_the_output_and_a_number_a_row() -> None:
    qkv = Draw(12, torch.bfloat16).normal(2, 130, 3, 2, 16)
    way = partial(short_head_attention.triton_fused, dropout=0.2)
    with tiles(*SMALL):
        kept = kept_bytes(way, qkv, but=(qkv,))
    assert kept == 2 * 130 * 2 * 16 * 2 + 2 * 2 * 256 * 4 + 8


@pytest.mark.parametrize(
    ("shape", "dropout", "reason"),
    [
        ((1, 9, 3, 2, 24), 0.0, "heads of 24"),
        ((1, 9, 2, 2, 16), 0.0, "not (B, T, 3, heads, D)"),
        ((1, 0, 3, 2, 16), 0.0, "not (B, T, 3, heads, D)"),
        ((1, 9, 3, 2, 16), 1.0, "dropout 1.0"),
    ],
)
def test_it_says_what_it_cannot_take(shape: tuple[int, ...], dropout: float, reason: str) -> None:
    qkv = torch.zeros(shape, device=DEVICE)
    assert reason in short_head_attention.cannot(qkv, dropout)
    with pytest.raises(ValueError, match="short_head_attention"):
        short_head_attention.triton_fused(qkv, dropout)


def test_it_cannot_take_values_that_lie_apart_or_doubles() -> None:
    qkv = torch.zeros(1, 9, 3, 2, 32, device=DEVICE)
    assert "side by side" in short_head_attention.cannot(qkv[..., ::2])
    assert "float64" in short_head_attention.cannot(qkv.double())


SIZES = [(4, 4096, 4, 16), (16, 4096, 4, 16), (1, 512, 4, 16), (2, 4097, 5, 16), (1, 8192, 4, 32)]
"""(B, T, heads, D) that matter: the ViT at batch 4 and 16, at 64^3 voxels, odd ones, the longest.

ViT-Depth has (4, 4096, 12, 64).
"""


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("size", [*SIZES, (4, 4096, 12, 64)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu_at_real_sizes(size: tuple[int, ...], dtype: torch.dtype) -> None:
    batch, length, heads, head_size = size
    qkv = Draw(13, dtype).normal(batch, length, 3, heads, head_size)
    exact = results(short_head_attention.torch_fast, qkv.detach().double().requires_grad_())
    with poisoned():
        got = results(short_head_attention.triton_fused, qkv)
    theirs = results(short_head_attention.torch_fast, qkv)
    for mine, other, right in zip(got, theirs, exact, strict=True):
        error = relative_error(mine, right)
        assert error < (1e-3 if dtype == torch.float32 else 1e-2)
        if dtype in HALVES:
            assert error < 1.1 * relative_error(other, right) + 2e-4


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("name", ["forward", "queries", "keys"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_on_a_gpu_every_tile_of_the_tuner_is_right(name: str, dropout: float) -> None:
    from mvl_dist.kernels import _attention_launch

    qkv, seed = Draw(14, torch.bfloat16).normal(2, 1000, 3, 3, 16), seed_of(15)
    exact = results(
        partial(short_head_attention.reference, dropout=dropout, seed=seed), as_double(qkv)
    )
    way = partial(short_head_attention.triton_fused, dropout=dropout, seed=seed)
    kernel = _attention_launch.KERNELS[name, "short"]
    before = kernel.configs
    try:
        for tile in before:
            kernel.configs = [tile]
            for mine, right in zip(results(way, qkv), exact, strict=True):
                assert relative_error(mine, right) < 1e-2, tile
    finally:
        kernel.configs = before


@pytest.mark.gpu
@on_gpu
def test_a_cuda_graph_draws_a_new_mask_each_time_it_is_replayed() -> None:
    qkv = Draw(16, torch.bfloat16).normal(1, 256, 3, 2, 16, trained=False)
    for _ in range(3):
        short_head_attention.triton_fused(qkv, 0.2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o = short_head_attention.triton_fused(qkv, 0.2)
    graph.replay()
    first = o.clone()
    graph.replay()
    assert not torch.equal(first, o)
