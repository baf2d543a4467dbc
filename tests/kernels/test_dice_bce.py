"""Dice + BCE in one pass: the project's loss and its Dice, to the last count."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mvl_dist.kernels import dice_bce
from mvl_dist.losses import dice_bce_loss, region_dice
from tests.kernels.checking import (
    DTYPES,
    Draw,
    check,
    few,
    kept_bytes,
    on_gpu,
    poisoned,
    relative_error,
)
from tests.kernels.interpreter import DEVICE


def random_case(
    shape: tuple[int, ...], dtype: torch.dtype, seed: int, foreground: float = 0.3
) -> tuple[Tensor, Tensor]:
    draw = Draw(seed, dtype)
    target = torch.rand(shape, generator=draw.generator) < foreground
    return draw.normal(*shape, scale=3), target.to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_reference_is_the_projects_loss_and_dice(dtype: torch.dtype) -> None:
    logits, target = random_case((3, 2, 6, 5, 4), dtype, 0)
    target[0, 0] = False
    loss, counts = dice_bce.reference(logits, target, 0.5)
    torch.testing.assert_close(loss, dice_bce_loss(logits, target, 0.5), rtol=1e-12, atol=0)
    torch.testing.assert_close(dice_bce.dice_of(counts), region_dice(logits, target))


@few
@given(
    st.tuples(*[st.integers(1, most) for most in (3, 3, 17, 33, 40)]), st.sampled_from(DTYPES),
    st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([1e-5, 1.0]), st.integers(0, 2**32),
)  # fmt: skip
def test_the_kernel_is_the_loss_in_float64(
    shape: tuple[int, ...], dtype: torch.dtype, foreground: float, smooth: float, seed: int
) -> None:
    logits, target = random_case(shape, dtype, seed, foreground)
    check(dice_bce, logits, target, smooth, exact=dice_bce_loss)
    with poisoned():
        counts = dice_bce.triton_fused(logits, target, smooth)[1]
    torch.testing.assert_close(counts, dice_bce.reference(logits, target, smooth)[1])
    torch.testing.assert_close(dice_bce.dice_of(counts), region_dice(logits, target))


@pytest.mark.parametrize("target_dtype", [torch.uint8, torch.int64, torch.bfloat16, torch.float32])
def test_labels_may_be_of_any_dtype(target_dtype: torch.dtype) -> None:
    logits, target = random_case((2, 1, 5, 6, 7), torch.float32, 1)
    expected = dice_bce.triton_fused(logits, target)
    got = dice_bce.triton_fused(logits, target.to(target_dtype))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_logits_may_be_strided() -> None:
    logits, target = random_case((2, 4, 5, 6, 7), torch.bfloat16, 2)
    logits = logits.detach()[:, 1:3].requires_grad_()
    check(dice_bce, logits, target.transpose(2, 4)[:, ::2].transpose(2, 4), exact=dice_bce_loss)


@pytest.mark.filterwarnings("ignore:overflow")  # the interpreter's; exp is infinite there
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("magnitude", [1e4, -1e4])
def test_extreme_logits_give_the_loss_and_finite_gradients(
    dtype: torch.dtype, magnitude: float
) -> None:
    _, target = random_case((2, 2, 4, 4, 4), dtype, 3)
    logits = torch.full(target.shape, magnitude, dtype=dtype, device=DEVICE, requires_grad=True)
    loss, _ = dice_bce.triton_fused(logits, target)
    torch.testing.assert_close(loss, dice_bce_loss(logits, target), rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all()


def test_a_scaled_loss_has_a_scaled_gradient() -> None:
    logits, target = random_case((2, 1, 4, 4, 4), torch.float32, 4)
    one, _ = dice_bce.triton_fused(logits, target)
    (once,) = torch.autograd.grad(one, logits, retain_graph=True)
    (scaled,) = torch.autograd.grad(one * 3, logits)
    torch.testing.assert_close(scaled, 3 * once)


def test_logits_and_labels_alone_are_kept_for_backward() -> None:
    logits, target = random_case((2, 1, 32, 16, 16), torch.bfloat16, 5)
    voxels, rows = logits.numel(), 2
    assert kept_bytes(dice_bce.triton_fused, logits, target) == voxels * (2 + 1) + rows * 12
    assert kept_bytes(dice_bce_loss, logits, target) > 12 * voxels


def test_what_the_kernel_cannot_do_is_said() -> None:
    logits, target = random_case((2, 1, 4, 4, 4), torch.float32, 6)
    assert "float64" in dice_bce.cannot(logits.double(), target)
    assert "(2, 1, 4, 4, 4)" in dice_bce.cannot(logits, target[:1])
    assert dice_bce.cannot(logits[0], target[0])


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_at_the_size_of_a_training_step(dtype: torch.dtype) -> None:
    logits, target = random_case((4, 3, 128, 128, 128), dtype, 7, 0.01)
    check(dice_bce, logits, target, exact=dice_bce_loss)
    loss, counts = dice_bce.triton_fused(logits, target)
    assert relative_error(loss, dice_bce_loss(logits.double(), target)) < 1e-6
    torch.testing.assert_close(dice_bce.dice_of(counts), region_dice(logits, target))
