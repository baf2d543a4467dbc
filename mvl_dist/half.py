"""float32 to float16 in half of NumPy's time, bit for bit the same.

NumPy converts one number at a time (about 4 ns each), which was a tenth of a whole conversion. This
is the same rounding (to the nearest, ties to even) in whole-array integer steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

# What fits the second-level cache with its intermediate results.
_BLOCK = 32768
# Between these float16 is a normal number; zeros, smaller and larger ones are left to NumPy.
_SMALLEST, _LARGEST = np.float32(2.0**-14), np.float32(65504)
# The exponent's offset is 127 in float32 and 15 in float16.
_OFFSETS_APART = np.uint32((127 - 15) << 10)


def to_half(values: npt.NDArray[np.float32], out: npt.NDArray[Any]) -> None:
    """Write `values` as float16 into `out` (float16); both contiguous and of one size."""
    source, target = values.reshape(-1), out.reshape(-1)
    rounded = np.empty(_BLOCK, np.uint32)
    scratch = np.empty(_BLOCK, np.uint32)
    for start in range(0, source.size, _BLOCK):
        part = source[start : start + _BLOCK]
        _convert(part, target[start : start + _BLOCK], rounded[: part.size], scratch[: part.size])


def _convert(
    part: npt.NDArray[np.float32],
    out: npt.NDArray[np.float16],
    rounded: npt.NDArray[np.uint32],
    scratch: npt.NDArray[np.uint32],
) -> None:
    bits = part.view(np.uint32)
    # Half a unit of the last place kept, less one bit where that place is even.
    np.right_shift(bits, 13, out=rounded)
    np.bitwise_and(rounded, 1, out=rounded)
    np.add(rounded, bits, out=rounded)
    np.add(rounded, 0xFFF, out=rounded)
    np.right_shift(rounded, 13, out=rounded)
    np.subtract(rounded, _OFFSETS_APART, out=rounded)
    np.bitwise_and(rounded, 0x7FFF, out=rounded)
    np.right_shift(bits, 16, out=scratch)
    np.bitwise_and(scratch, 0x8000, out=scratch)
    np.bitwise_or(rounded, scratch, out=rounded)
    np.copyto(out.view(np.uint16), rounded, casting="unsafe")
    size = np.abs(part, out=scratch.view(np.float32))
    if not (size.min() >= _SMALLEST and size.max() <= _LARGEST):  # a NaN is neither
        other = ~((size >= _SMALLEST) & (size <= _LARGEST))
        out[other] = part[other].astype(np.float16)
