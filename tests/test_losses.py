"""The loss has real gradients, survives bf16 and doesn't depend on how a batch is split."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from mvl_dist.losses import (
    dice_bce_loss,
    dice_ce_loss,
    region_dice,
    training_loss,
)
from mvl_dist.metrics import case_metrics


def random_case(
    shape: tuple[int, ...] = (2, 3, 6, 5, 4), seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator).to(dtype) * 3
    return logits, (torch.rand(shape, generator=generator) < 0.3)


def dice_half(logits: Tensor, target: Tensor) -> Tensor:
    bce = binary_cross_entropy_with_logits(logits, target.to(logits.dtype))
    return dice_bce_loss(logits, target) - bce


@pytest.mark.parametrize("smooth", [1e-5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_is_monai_dice_plus_torch_bce(dtype: torch.dtype, smooth: float) -> None:
    from monai.losses import DiceLoss

    logits, target = random_case(dtype=dtype)
    soft_dice = DiceLoss(sigmoid=True, smooth_nr=smooth, smooth_dr=smooth)(logits, target.to(dtype))
    bce = binary_cross_entropy_with_logits(logits, target.to(dtype))
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    ours = dice_bce_loss(logits, target, smooth)
    torch.testing.assert_close(ours, soft_dice + bce, rtol=tolerance, atol=tolerance)


def test_the_gradient_is_the_derivative_of_the_value() -> None:
    logits, target = random_case((2, 2, 3, 2, 2), dtype=torch.float64)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: dice_bce_loss(z, target), logits)
    assert torch.autograd.gradcheck(lambda z: dice_half(z, target), logits)


def test_the_dice_half_trains() -> None:
    logits, target = random_case()
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(dice_half(logits, target), logits)
    # Dice of the published code thresholds first, so its half of the gradient is exactly zero.
    assert gradient.abs().min() > 0
    assert (gradient[target] < 0).all()
    assert (gradient[~target] > 0).all()


def test_the_loss_of_a_batch_is_the_mean_over_its_samples_however_split() -> None:
    logits, target = random_case((4, 3, 6, 5, 4), dtype=torch.float64)
    target[1] = False  # a sample without foreground counts like the others
    whole = dice_bce_loss(logits, target)
    for size in (1, 2):
        parts = zip(logits.split(size), target.split(size), strict=True)
        mean = torch.stack([dice_bce_loss(z, t) for z, t in parts]).mean()
        torch.testing.assert_close(mean, whole, rtol=1e-12, atol=0)


def test_two_samples_do_not_leak_into_each_other() -> None:
    logits, target = random_case((2, 1, 6, 5, 4), dtype=torch.float64)
    swapped = dice_bce_loss(logits, target.flip(0))
    alone = [dice_bce_loss(logits[i : i + 1], target[1 - i : 2 - i]) for i in (0, 1)]
    torch.testing.assert_close(swapped, torch.stack(alone).mean(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("magnitude", [1e4, -1e4])
@pytest.mark.parametrize("foreground", ["none", "all", "some"])
def test_extreme_logits_give_finite_values_and_gradients(
    dtype: torch.dtype, magnitude: float, foreground: str
) -> None:
    logits = torch.full((2, 2, 4, 4, 4), magnitude, dtype=dtype, requires_grad=True)
    target = torch.zeros(logits.shape)
    target[..., : {"none": 0, "all": 4, "some": 2}[foreground]] = 1
    loss = dice_bce_loss(logits, target)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_sums_over_a_large_bf16_volume_are_those_of_float64() -> None:
    logits, target = random_case((1, 1, 64, 64, 64), dtype=torch.bfloat16)
    loss = dice_bce_loss(logits, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(
        loss.double(), dice_bce_loss(logits.double(), target), rtol=1e-6, atol=0
    )


def test_float64_stays_float64() -> None:
    logits, target = random_case(dtype=torch.float64)
    assert dice_bce_loss(logits, target).dtype == torch.float64


def test_bf16_autocast_does_not_change_the_value() -> None:
    logits, target = random_case()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = dice_bce_loss(logits, target)
    torch.testing.assert_close(inside, dice_bce_loss(logits, target), rtol=1e-6, atol=0)


def test_the_loss_of_an_empty_target_falls_to_zero_as_the_prediction_empties() -> None:
    target = torch.zeros(1, 1, 8, 8, 8)
    losses = [
        dice_bce_loss(torch.full(target.shape, level), target)
        for level in (5.0, 0.0, -5.0, -10.0, -20.0)
    ]
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))
    assert losses[-1] < 1e-5


def test_a_perfect_prediction_has_no_loss() -> None:
    _, target = random_case()
    assert dice_bce_loss(target * 80.0 - 40.0, target) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16])
def test_targets_of_any_dtype_give_the_same_loss(dtype: torch.dtype) -> None:
    logits, target = random_case()
    expected = dice_bce_loss(logits, target.float())
    torch.testing.assert_close(dice_bce_loss(logits, target.to(dtype)), expected, rtol=0, atol=0)


def test_gradient_descent_on_the_loss_reaches_the_target() -> None:
    logits, target = random_case()
    logits.requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=0.5)
    for _ in range(60):
        optimiser.zero_grad()
        dice_bce_loss(logits, target).backward()
        optimiser.step()
    assert (region_dice(logits, target) == 1).all()


def test_region_dice_is_the_dice_of_the_evaluation() -> None:
    logits, target = random_case((3, 2, 6, 5, 4))
    dice = region_dice(logits.to(torch.bfloat16), target)
    assert dice.shape == (3, 2)
    for sample, region in ((s, r) for s in range(3) for r in range(2)):
        p, t = (logits[sample, region] > 0).numpy(), target[sample, region].numpy()
        expected = case_metrics(p, t, (1, 1, 1), 1)["dice"]
        assert dice[sample, region].item() == pytest.approx(expected, abs=1e-6)


def test_region_dice_follows_the_rules_for_empty_masks() -> None:
    logits = torch.tensor([-1.0, -1.0, 1.0, 0.0]).reshape(4, 1, 1, 1, 1).expand(4, 1, 2, 2, 2)
    target = torch.tensor([0, 1, 0, 0]).reshape(4, 1, 1, 1, 1).expand(4, 1, 2, 2, 2)
    assert region_dice(logits, target).flatten().tolist() == [1, 0, 0, 1]


def test_shapes_that_do_not_match_are_refused() -> None:
    logits, target = random_case()
    for function in (dice_bce_loss, region_dice):
        with pytest.raises(ValueError, match="B, R, D, H, W"):
            function(logits, target[:, :1])
        with pytest.raises(ValueError, match="B, R, D, H, W"):
            function(logits[0], target[0])
    with pytest.raises(ValueError, match="smooth"):
        dice_bce_loss(logits, target, smooth=0.0)


def exclusive_case(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn((2, 4, 6, 5, 4), generator=generator, dtype=dtype) * 3
    classes = torch.randint(0, 4, (2, 6, 5, 4), generator=generator)
    return logits, torch.stack([classes == region for region in (1, 2, 3)], 1)


def test_the_softmax_loss_is_monais_dice_and_cross_entropy() -> None:
    from monai.losses import DiceCELoss

    logits, target = exclusive_case()
    background = ~target.any(1, keepdim=True)
    oracle = DiceCELoss(softmax=True, include_background=False, smooth_nr=1.0, smooth_dr=1.0)
    # MONAI leaves the background out of the Dice half only.
    expected = oracle(logits, torch.cat([background, target], 1).double())
    torch.testing.assert_close(dice_ce_loss(logits, target), expected, rtol=1e-12, atol=1e-12)


def test_deep_supervision_halves_the_weight_of_each_coarser_output() -> None:
    logits, target = exclusive_case()
    logits = logits[:, 1:]
    outputs = [logits, logits * 0.5, logits * 0.25]
    one, two, four = (dice_bce_loss(output, target) for output in outputs)
    expected = (4 * one + 2 * two + four) / 7
    torch.testing.assert_close(training_loss(outputs, target, "sigmoid"), expected)
    torch.testing.assert_close(training_loss(logits, target, "sigmoid"), one)
