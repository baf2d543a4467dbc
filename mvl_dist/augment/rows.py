"""Some samples of a batch, for changes in place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


@contextlib.contextmanager
def rows(batch: Tensor, chosen: Sequence[int]) -> Iterator[Tensor]:
    """These rows of a batch (B, ...), ascending, as (N, ...); what is written there is kept."""
    first, end = chosen[0], chosen[-1] + 1
    if end - first == len(chosen):  # side by side, as one row is: no copy
        yield batch[first:end]
        return
    where = torch.tensor(chosen, device=batch.device)
    samples = batch.index_select(0, where)
    yield samples
    batch.index_copy_(0, where, samples)
