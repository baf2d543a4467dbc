"""Batches ahead of need, and no further."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from mvl_dist.batch_buffers import BatchBuffers
from mvl_dist.data import Batch
from mvl_dist.device_batches import ahead, on_device
from mvl_dist.errors import UserError


def test_on_a_cpu_batches_pass_through() -> None:
    batches: list[Batch] = [{"image": torch.ones(2)}, {"image": torch.zeros(2)}]
    passed = list(on_device(batches, torch.device("cpu")))
    assert all(one is other for one, other in zip(passed, batches, strict=True))


def one_buffer(asked: list[int]) -> Iterator[Batch]:
    """As the loader: a batch's memory is filled again when the next one is asked for."""
    memory = torch.zeros(3)
    for number in range(6):
        asked.append(number)
        memory.fill_(number)
        yield {"image": memory}
    memory.fill_(-1)


def copied(batch: Batch) -> Batch:
    time.sleep(0.01)  # a copy takes its time
    return {"image": batch["image"].clone()}


def test_batches_come_in_order_from_memory_that_is_used_again() -> None:
    numbers = []
    for batch in ahead(one_buffer([]), copied):
        time.sleep(0.02)
        numbers.append(batch["image"].tolist())
    assert numbers == [[float(n)] * 3 for n in range(6)]


def test_the_next_batch_is_there_when_a_step_has_ended() -> None:
    asked: list[int] = []
    batches = ahead(one_buffer(asked), copied)
    next(batches)
    time.sleep(0.2)  # the step
    # One is brought, one waits for its place; the loader is asked for no more.
    assert asked == [0, 1, 2]
    batches.close()  # type: ignore[attr-defined]


def test_an_error_arrives_where_the_batch_would_have() -> None:
    def damaged() -> Iterator[Batch]:
        yield {"image": torch.zeros(1)}
        raise UserError("case 2 cannot be read")

    batches = ahead(damaged(), copied)
    next(batches)
    with pytest.raises(UserError, match="case 2 cannot be read"):
        next(batches)


def test_an_epoch_that_is_left_leaves_no_thread() -> None:
    before = threading.active_count()
    batches = ahead(one_buffer([]), copied)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_process_may_pin_one_loaders_memory_after_anothers() -> None:
    """As a study's does, run after run; the memory often lies at the same address."""
    layout = {"image": ((1, 64, 64, 64), torch.float16)}
    for number in range(4):
        buffers = BatchBuffers(layout, 2, slots=3)
        buffers.pin()
        batch = buffers.batch(1)
        batch["image"].fill_(number)
        (moved,) = on_device([batch], torch.device("cuda"))
        assert batch["image"].is_pinned()
        assert bool((moved["image"] == number).all())
