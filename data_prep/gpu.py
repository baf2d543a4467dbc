"""Images normalised, resampled and rounded by torch on a GPU: bit for bit what the CPU makes.

IEEE single precision rounds one product, one sum and one quotient alike everywhere, so each is a
kernel of its own here, in the order of mvl_dist/resample.py. Of no use is what torch rounds once
(`add_` with `alpha`, `addcmul_`, `lerp_`), sums in an order of its own (a matrix product,
`interpolate`), or adds atomically (`index_add_`: a GPU then takes subnormal numbers for 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mvl_dist.errors import UserError
from mvl_dist.intensity import Scale
from mvl_dist.resample import linear_weights, resampled_axes

# Voxels that are worked on at once: what lies beside a volume and its next form stays small.
_SLAB = 1 << 23
# Fewer bytes to send than float32, and of types that torch converts.
_SENT_AS_THEY_ARE = (np.dtype(np.uint8), np.dtype(np.int8), np.dtype(np.int16))

_device: torch.device | None = None

# Rows of an axis that have a further tap (None: all have), its source voxel and its weight.
Tap = tuple[Tensor | None, Tensor, Tensor]


def take_gpu(number: int) -> None:
    """Have `fill_on_gpu` in this process use GPU `number`; above the last the first comes again.

    Raises:
        UserError: torch sees no GPU.
    """
    global _device
    if not torch.cuda.is_available():
        raise UserError(
            f"--resample-on cuda: torch {torch.__version__} sees no GPU here: run where it does (a "
            "CUDA build on a node with a GPU), or with --resample-on cpu: the arrays are equal"
        )
    _device = torch.device("cuda", number % torch.cuda.device_count())


def fill_on_gpu(
    volume: npt.NDArray[Any], scale: Scale, outs: Sequence[npt.NDArray[np.float16]]
) -> None:
    """`fill` on the GPU that `take_gpu` gave this process.

    Raises:
        UserError: its memory is too small, or CUDA refuses the work (a GPU in another's exclusive
            use, or one that torch has no kernels for).
    """
    assert _device is not None
    try:
        # Made current, or emptying would start CUDA on the first GPU too, half a GB a process.
        with torch.cuda.device(_device):
            fill(volume, scale, outs, _device)
            torch.cuda.empty_cache()  # what this process keeps for later another may need now
    except RuntimeError as error:  # out of memory at CUDA's start is no torch.OutOfMemoryError
        said = str(error).splitlines()[0]
        if "out of memory" in said:
            shape = "x".join(map(str, volume.shape))
            problem = (
                f"a volume of {shape} voxels and what the other processes hold do not fit into the "
                f"memory of {_device}"
            )
        elif said.startswith("CUDA"):
            problem = f"{_device} does not take the work ({said})"
        else:
            raise
        raise UserError(
            f"--resample-on cuda: {problem}; cases already written are kept: run the same command "
            "again with fewer --workers, or with --resample-on cpu"
        ) from error


def fill(
    volume: npt.NDArray[Any],
    scale: Scale,
    outs: Sequence[npt.NDArray[np.float16] | npt.NDArray[np.float32]],
    device: torch.device,
) -> None:
    """Normalise a volume (D0, H0, W0) and resample it to each of `outs` (D, H, W), on a device.

    Args:
        volume: of any real type, strides and byte order; only read.
        outs: float16 or float32, C order.
    """
    normalised = _normalised(volume, scale, device)
    for out in outs:
        _resample(normalised, torch.from_numpy(out))


def _normalised(volume: npt.NDArray[Any], scale: Scale, device: torch.device) -> Tensor:
    """`Scale.apply` of (D, H, W): float32 on the device."""
    native = volume.dtype.newbyteorder("=")
    sent = native if native in _SENT_AS_THEY_ARE else np.dtype(np.float32)
    # Turned on the device: NumPy takes longer over memory that it walks backwards.
    backwards = tuple(axis for axis, step in enumerate(volume.strides) if step < 0)

    def number(value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float32, device=device)

    # On the device, because torch multiplies by the reciprocal of a divisor that it has on the CPU.
    mean, divisor = number(scale.mean), number(scale.divisor)
    limits = scale.clip and [number(limit) for limit in scale.clip]
    out = torch.empty(volume.shape, dtype=torch.float32, device=device)
    planes = max(1, _SLAB * len(volume) // volume.size)
    for start in range(0, len(volume), planes):
        part = slice(start, start + planes)
        # A copy, since torch warns of memory that it may not write to.
        lying = torch.from_numpy(np.flip(volume[part], backwards).astype(sent, order="C"))
        values = lying.to(device).flip(backwards).to(torch.float32)
        if limits:
            # Not clamp_, of whose equal zeros a GPU may take the other sign than NumPy.
            values.masked_fill_(values < limits[0], limits[0])
            values.masked_fill_(values > limits[1], limits[1])
        out[part] = values.sub_(mean).div_(divisor)
    return out


def _resample(volume: Tensor, out: Tensor) -> None:
    """Resample (D0, H0, W0), float32 on a device, into `out` (D, H, W) on the CPU."""
    weights = [linear_weights(n, m) for n, m in zip(volume.shape, out.shape, strict=True)]
    axes = resampled_axes(weights)
    for axis in axes:
        shape = list(volume.shape)
        shape[axis] = out.shape[axis]
        dtype = out.dtype if axis == axes[-1] else torch.float32
        resampled = torch.empty(shape, dtype=dtype, device=volume.device)
        _resample_axis(volume, weights[axis], axis, resampled)
        volume = resampled
    out.copy_(volume.to(out.dtype))


def _resample_axis(
    volume: Tensor, weights: npt.NDArray[np.float32], axis: int, out: Tensor
) -> None:
    """Resample one axis into `out`, float32 or float16, slab by slab across another axis."""
    taps = _taps(weights, axis, volume.device)
    across = 1 if axis == 0 else 0
    step = max(1, _SLAB * out.shape[across] // max(volume.numel(), out.numel()))
    for source, target in zip(volume.split(step, across), out.split(step, across), strict=True):
        target.copy_(_weighted(source, taps, axis))


def _taps(weights: npt.NDArray[np.float32], axis: int, device: torch.device) -> list[Tap]:
    """The first non-zero weight of each row of (new, old), the second of those that have it, ..."""
    rows, columns = np.nonzero(weights)
    place = np.arange(rows.size) - np.searchsorted(rows, rows)  # of a weight in its row
    shape = [1, 1, 1]
    shape[axis] = -1
    taps: list[Tap] = []
    for number in range(int(place.max()) + 1):
        row, column = rows[place == number], columns[place == number]
        some = torch.from_numpy(row).to(device) if row.size < len(weights) else None
        weight = torch.from_numpy(weights[row, column]).to(device).view(shape)
        taps.append((some, torch.from_numpy(column).to(device), weight))
    return taps


def _weighted(source: Tensor, taps: Sequence[Tap], axis: int) -> Tensor:
    """Sum an axis' taps one after another, as the CPU does.

    A row without a further tap is left alone: adding 0 to it could turn the sign of a zero.
    """
    (_, column, weight), *others = taps
    sums = source.index_select(axis, column).mul_(weight)
    if axis != 0:
        # Within a plane the CPU's sums start at 0, which leaves no -0; along D at the product.
        sums.add_(0.0)
    for rows, column, weight in others:
        products = source.index_select(axis, column).mul_(weight)
        if rows is None:
            sums.add_(products)
        else:
            sums.index_copy_(axis, rows, sums.index_select(axis, rows).add_(products))
    return sums
