import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mvl_dist.augment import PRESETS, Anatomy, presets
from mvl_dist.augment.presets import STRONG, Step, strong
from mvl_dist.data import Item, RankBatches
from mvl_dist.tasks import TASKS

ANATOMY = Anatomy((1.5, 1.0, 0.8), (2,), keeps_background=True)
CASES = 7
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def case(index: int) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.from_numpy(np.random.default_rng(index).standard_normal((2, 9, 11, 13)))
    return values.half(), (values > 0.3).to(torch.uint8)


def augmented(name: str, items: list[Item], device: str = "cpu") -> list[torch.Tensor]:
    """Image and target of each item after one call with all of them."""
    cases = (case(item.case) for item in items)
    image, target = (torch.stack(parts).to(device) for parts in zip(*cases, strict=True))
    seeds = [(5, item.epoch, item.position) for item in items]
    image, target = PRESETS[name](image, target, seeds, ANATOMY)
    return [torch.cat(parts) for parts in zip(image, target, strict=True)]


@pytest.mark.parametrize("name", ["paper", "strong"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, on_gpu])])
def test_a_batch_of_four_is_four_batches_of_one(name: str, device: str) -> None:
    for epoch in range(25):
        items = [Item(number, number, epoch) for number in range(4)]
        torch.manual_seed(epoch)
        together = augmented(name, items, device)
        torch.manual_seed(-epoch)
        apart = [augmented(name, [item], device)[0] for item in reversed(items)][::-1]
        assert all(torch.equal(*pair) for pair in zip(together, apart, strict=True))


def test_where_a_threads_part_of_a_batch_ends_a_sample_does_not_change() -> None:
    values = torch.from_numpy(np.random.default_rng(0).standard_normal((6, 1, 37, 96, 33))).float()
    everything = [Step(1.0, step.transform) for step in STRONG]
    threads, seeds = torch.get_num_threads(), [(5, 0, position) for position in range(6)]
    torch.set_num_threads(2)
    try:
        together, _ = strong(values, values > 0, seeds, ANATOMY, everything)
        for place, one in enumerate(together):
            beside = slice(place, place + 1)
            alone, _ = strong(
                values[beside], values[beside] > 0, seeds[beside], ANATOMY, everything
            )
            assert torch.equal(alone[0], one)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["paper", "strong"])
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_see_what_one_rank_sees(name: str, world_size: int) -> None:
    def seen(ranks: int) -> dict[int, torch.Tensor]:
        samples = {}
        for rank in range(ranks):
            batches = RankBatches(CASES, 4, rank, ranks, seed=5)
            for items in batches:
                found = augmented(name, items)
                samples |= {item.position: one for item, one in zip(items, found, strict=True)}
        return samples

    alone, shared = seen(1), seen(world_size)
    assert alone.keys() == shared.keys()
    assert all(torch.equal(alone[position], shared[position]) for position in alone)


def test_another_seed_epoch_or_position_is_another_augmentation() -> None:
    image, target = (part[None] for part in case(0))
    everything = [Step(1.0, step.transform) for step in STRONG]
    seeds = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    results = [strong(image, target, [seed], ANATOMY, everything)[0] for seed in seeds]
    assert len({result.numpy().tobytes() for result in results}) == 4


@pytest.mark.parametrize("step", STRONG, ids=lambda step: step.transform.__name__)
def test_each_step_is_applied_as_often_as_nnunet_applies_it(step: Step) -> None:
    expected = {
        "gaussian_noise": 0.1,
        "gaussian_blur": 0.2 * 0.75,  # of two channels, at least one in 3 of 4 cases
        "brightness": 0.15,
        "contrast": 0.15,
        "low_resolution": 0.25 * 0.75,
        "inverted_gamma": 0.1,
        "gamma": 0.3,
    }[step.transform.__name__]
    image = torch.from_numpy(np.random.default_rng(0).random((1, 2, 5, 5, 5))).float()
    anatomy, count = Anatomy((1.0, 1.0, 1.0)), 1500
    batch = image.expand(count, -1, -1, -1, -1)
    seeds = [(0, 0, position) for position in range(count)]
    moved, _ = strong(batch, batch[:, :1], seeds, anatomy, ())
    changed, _ = strong(batch, batch[:, :1], seeds, anatomy, (step,))
    share = float((moved != changed).flatten(1).any(1).float().mean())
    assert share == pytest.approx(expected, abs=4 * (expected / count) ** 0.5)


@pytest.mark.gpu
@on_gpu
def test_the_host_waits_for_no_step_on_a_gpu() -> None:
    values = torch.randn(6, 2, 16, 17, 18, device="cuda")
    target, everything = values > 0, [Step(0.6, step.transform) for step in STRONG]
    seeds = [(0, 0, position) for position in range(6)]
    strong(values, target, seeds, ANATOMY, everything)  # its first call starts CUDA's libraries
    torch.cuda.set_sync_debug_mode("error")
    try:
        strong(values, target, seeds, ANATOMY, everything)
        PRESETS["paper"](values, target, seeds, ANATOMY)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("samples_a_call", [64, 7])
def test_a_step_is_one_call_for_all_samples_that_drew_it_and_have_room(
    samples_a_call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presets, "_VALUES_AT_ONCE", samples_a_call * 27)
    calls: list[tuple[int, int, int | None]] = []

    def doubled(
        samples: torch.Tensor, generators: Sequence[np.random.Generator], coarse: int | None
    ) -> None:
        calls.append((len(samples), len(generators), coarse))
        samples *= 2

    image = torch.full((64, 1, 3, 3, 3), 5.0)
    seeds = [(0, 0, position) for position in range(64)]
    step, anatomy = Step(0.5, doubled), Anatomy((4.0, 1.0, 1.0))
    for order in (seeds, sorted(seeds, key=lambda seed: seed[2] % 2)):
        values = strong(image, image, order, anatomy, (step,))[0][:, 0, 0, 0, 0]
        changed = int((values > 7.5).sum())
        assert 16 < changed < 48
        full, rest = divmod(changed, samples_a_call)
        assert calls == [(size, size, 0) for size in [samples_a_call] * full + [rest] * bool(rest)]
        calls.clear()


def test_steps_are_drawn_independently_of_each_other() -> None:
    count, anatomy = 3000, Anatomy((1.0, 1.0, 1.0))
    values = torch.from_numpy(np.random.default_rng(0).random((1, 1, 3, 3, 3))).float()
    batch = values.expand(count, -1, -1, -1, -1)
    seeds = [(0, 0, position) for position in range(count)]
    still, _ = strong(batch, batch, seeds, anatomy, ())
    first, second = (
        (strong(batch, batch, seeds, anatomy, (step,))[0] != still).flatten(1).any(1)
        for step in STRONG
        if step.transform.__name__ in ("brightness", "contrast")
    )
    # By chance 0.15 x 0.15 = 67 samples get both; from one stream it would be all of 450.
    assert 35 < int((first & second).sum()) < 105


def test_a_step_more_leaves_the_draws_of_the_others_alone() -> None:
    image, target = (part[None] for part in case(0))
    first, second = Step(1.0, STRONG[2].transform), Step(1.0, STRONG[0].transform)
    for position in range(10):
        seeds = [(0, 0, position)]
        alone = strong(image, target, seeds, Anatomy((1, 1, 1)), (first,))[0]
        both = strong(image, target, seeds, Anatomy((1, 1, 1)), (first, second))[0]
        noise = strong(torch.zeros_like(image), target, seeds, Anatomy((1, 1, 1)), (second,))[0]
        torch.testing.assert_close(both - alone, noise, rtol=0, atol=1e-6)


def test_stripped_background_of_mri_stays_as_it_is_and_that_of_ct_does_not() -> None:
    ct = dataclasses.replace(ANATOMY, keeps_background=False)
    image = torch.full((1, 2, 12, 12, 12), -3.0)
    image[:, :, 4:8, 4:8, 4:8] = torch.randn(2, 4, 4, 4)
    mask = torch.zeros(1, 1, 12, 12, 12)
    everything = [Step(1.0, step.transform) for step in STRONG]
    for position in range(20):
        seeds = [(0, 0, position)]
        kept, _ = strong(image, mask, seeds, ANATOMY, everything)
        torch.testing.assert_close(kept[..., 0, :, :], image[..., 0, :, :], rtol=0, atol=1e-6)
        tissue, _ = strong((image > -3).float(), mask, seeds, ANATOMY, ())
        still, _ = strong(image, mask, seeds, ANATOMY, ())
        assert not torch.allclose(kept[tissue > 0.9], still[tissue > 0.9], atol=1e-3)
        changed, _ = strong(image, mask, seeds, ct, everything)
        assert not torch.equal(changed[..., 0, :, :], image[..., 0, :, :])


def test_every_value_is_interpolated_once_and_only_where_more_than_a_mirroring_was_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = []
    original = F.grid_sample

    def counting(values: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        counted.append(len(values))
        return original(values, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(F, "grid_sample", counting)
    image = torch.randn(100, 1, 4, 4, 4)
    moved, masks = strong(image, image > 0, [(0, 0, p) for p in range(100)], ANATOMY, ())
    still, mirrored = ((moved == expected).flatten(1).all(1) for expected in (image, image.flip(4)))
    assert torch.equal(masks[mirrored] > 0, image[mirrored].flip(4) > 0)
    changed = int((~still & ~mirrored).sum())
    assert min(still.sum(), mirrored.sum(), changed) > 20
    assert counted == [changed, changed]


def test_the_callers_batch_stays_whole_and_the_result_is_float32() -> None:
    image, target = (torch.stack(parts) for parts in zip(*map(case, range(4)), strict=True))
    before = image.clone(), target.clone()
    for name in ("paper", "strong"):
        moved, masks = PRESETS[name](image, target, [(0, 0, p) for p in range(4)], ANATOMY)
        assert moved.dtype == masks.dtype == torch.float32
        assert set(masks.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(image, before[0])
    assert torch.equal(target, before[1])


def test_without_augmentation_the_batch_is_what_was_read() -> None:
    image, target = case(0)
    assert PRESETS["none"](image, target, [(0, 0, 0)], ANATOMY) == (image, target)


def test_a_tasks_anatomy_says_its_axes_and_its_background() -> None:
    brain = Anatomy.of(TASKS["Task01_BrainTumour"], (1.0, 1.0, 1.0))
    assert (brain.mirror_axes, brain.keeps_background) == ((2,), True)
    liver = Anatomy.of(TASKS["Task03_Liver"], (1.0, 1.0, 1.0))
    assert (liver.mirror_axes, liver.keeps_background) == ((), False)
