"""Weights of several linears in one memory: one matrix product instead of several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def lay_side_by_side(weights: Sequence[nn.Parameter]) -> None:
    """Move parameters (N_i, K) of one dtype and device into one memory, in place.

    They stay parameters of their own, with their names, shapes and values. Whatever gives them new
    memory (`.to`, ZeRO stage 3) undoes it: then each is a product of its own again.
    """
    if joined(weights) is None:
        together = torch.cat([weight.detach() for weight in weights])
        for weight, rows in zip(weights, together.split([len(w) for w in weights]), strict=True):
            weight.data = rows


def joined(weights: Sequence[Tensor]) -> Tensor | None:
    """The matrix (sum of N_i, K) that weights (N_i, K) are if they lie side by side; a view."""
    first, rows = weights[0], 0
    for weight in weights:
        beside = (
            weight.is_contiguous()
            and weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
            and weight.storage_offset() == first.storage_offset() + rows * first.shape[1]
            and weight.shape[1:] == first.shape[1:]
        )
        if not beside:
            return None
        rows += len(weight)
    return first.detach().as_strided((rows, first.shape[1]), (first.shape[1], 1))
