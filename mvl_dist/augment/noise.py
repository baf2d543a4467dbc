"""Gaussian noise that is the same field on every device and in every batch.

torch's own generators give other numbers on a GPU than on a CPU. Here every voxel's number follows
from its index and the sample's key alone, through Philox4x32-10 (Salmon et al., Parallel random
numbers: as easy as 1, 2, 3, SC 2011) and Box and Muller's transform. Bits are equal everywhere;
logarithm and cosine differ between devices in the last digit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mvl_dist.augment.batch import apart, sent

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Four random words of 32 bits for every counter and key, as int64 tensors.

    Args:
        counter: four int64 tensors of words, the least significant first.
        key: two such tensors; all six broadcast.
    """
    a, b, c, d = counter
    first, second = key
    for _ in range(10):
        # A product wraps in int64; its 64 bits are right all the same.
        left, right = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (
            ((right >> 32) & _LOW) ^ b ^ first,
            right & _LOW,
            ((left >> 32) & _LOW) ^ d ^ second,
            left & _LOW,
        )
        first, second = (first + _WEYL[0]) & _LOW, (second + _WEYL[1]) & _LOW
    return a, b, c, d


def normal_fields(
    shape: Sequence[int], keys: npt.NDArray[np.integer], device: torch.device
) -> Tensor:
    """A field of independent standard normal values for each key, (N, *shape) float32.

    Args:
        keys: (N, 2) words of 32 bits; another key gives another field.
    """
    size = math.prod(shape)
    key = sent(keys.astype(np.int64), device).T[:, :, None]
    index = torch.arange(-(-size // 4), dtype=torch.int64, device=device)
    nothing = torch.zeros_like(index)
    words = philox((index & _LOW, index >> 32, nothing, nothing), (key[0], key[1]))
    drawn = zip(*(apart(word) for word in words), strict=True)
    return torch.cat([_normal(part) for part in drawn])[:, :size].reshape(len(keys), *shape)


def _normal(words: Sequence[Tensor]) -> Tensor:
    """Four words of 32 bits, (N, n) each, to their normal values, (N, 4 n) float32."""
    # The 24 bits that float32 holds, in the middle of their steps: never 0, whose logarithm is not.
    a, b, c, d = (((word >> 8).float() + 0.5) / 2**24 for word in words)
    values = []
    for radius, turn in ((a, b), (c, d)):
        length, angle = torch.sqrt(-2 * torch.log(radius)), 2 * math.pi * turn
        values += [length * torch.cos(angle), length * torch.sin(angle)]
    return torch.stack(values, dim=2).flatten(1)
