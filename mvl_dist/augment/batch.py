"""Some samples of a batch for changes in place, and numbers sent to where the batch is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@contextlib.contextmanager
def rows(batch: Tensor, chosen: Sequence[int]) -> Iterator[Tensor]:
    """These rows of a batch (B, ...), ascending, as (N, ...); what is written there is kept."""
    first, end = chosen[0], chosen[-1] + 1
    if end - first == len(chosen):  # side by side, as one row is: no copy
        yield batch[first:end]
        return
    where = sent(np.array(chosen), batch.device)
    samples = batch.index_select(0, where)
    yield samples
    batch.index_copy_(0, where, samples)


def sent(numbers: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """An array on a device; the GPU's queue is not waited for, as a plain copy would."""
    there = torch.from_numpy(numbers)
    return there.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else there


def apart(values: Tensor) -> Sequence[Tensor]:
    """A batch in parts, for functions whose last bit may follow the size of what they are given.

    On a CPU a logarithm, cosine or power does, where a thread's part ends: sample by sample there,
    all at once on a GPU, which takes each value by itself.
    """
    return values.split(1) if values.device.type == "cpu" else (values,)
