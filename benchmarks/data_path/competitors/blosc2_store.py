"""nnU-Net's store: b2nd files, chunked and read as nnU-Net 2.8 does (nnunetv2 2.8.1).

Its rules are in nnunetv2/training/dataloading/nnunet_dataset.py (`comp_blosc2_params`,
`nnUNetDatasetBlosc2`), written anew here. It keeps float32 and int16; here, as all others, float16
and uint8, which halves its bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import blosc2
import numpy as np
import numpy.typing as npt

from benchmarks.data_path.contract import Box, Competitor
from benchmarks.data_path.source import Arrays

BLOCK_BYTES, CHUNK_BYTES = 128 * 1024, 6 * 1024**2
CHUNK_TO_PATCH = 1.5


def chunking(
    shape: Sequence[int], patch: Sequence[int], itemsize: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Block and chunk of an array (C, D, H, W) that is read in patches (D, H, W).

    A block is the patch rounded up to powers of two, then halved along the axis that is longest
    for the extent aimed at (1.5 patches, or the image) until it fits 128 KiB; a chunk grows by
    blocks, along the axis that covers least, while it fits 6 MiB. One channel each.
    """
    image = tuple(shape[1:])
    aim = [min(n, int(CHUNK_TO_PATCH * p)) for n, p in zip(image, patch, strict=True)]
    block = [min(1 << (p - 1).bit_length(), n) for p, n in zip(patch, image, strict=True)]
    while math.prod(block) * itemsize > BLOCK_BYTES:
        axis = max((a for a in range(3) if block[a] > 1), key=lambda a: (block[a] / aim[a], a))
        block[axis] = 1 << ((block[axis] - 1).bit_length() - 1)
    chunk = list(block)
    while True:
        grown = {}
        for axis in range(3):
            longer = min(chunk[axis] + block[axis], aim[axis])
            size = math.prod(chunk) // chunk[axis] * longer * itemsize
            if longer > chunk[axis] and size <= CHUNK_BYTES:
                grown[axis] = longer
        if not grown:
            return (1, *block), (1, *chunk)
        axis = min(grown, key=lambda a: (chunk[a] / aim[a], -image[a], a))
        chunk[axis] = grown[axis]


def write(path: Path, values: npt.NDArray, patch: Sequence[int]) -> None:
    """Write (C, D, H, W): LZ4HC at level 5, with shuffle or without, whichever packs a middle chunk
    better.
    """
    blocks, chunks = chunking(values.shape, patch, values.itemsize)
    settings = {"codec": blosc2.Codec.LZ4HC, "clevel": 5, "nthreads": 4}
    size = [min(c, n) for c, n in zip(chunks, values.shape, strict=True)]
    starts = [(n - s) // 2 for n, s in zip(values.shape, size, strict=True)]
    middle = np.ascontiguousarray(
        values[tuple(slice(a, a + s) for a, s in zip(starts, size, strict=True))]
    )
    packed = {
        each: blosc2.asarray(
            middle, chunks=size, blocks=blocks, cparams={**settings, "filters": [each]}
        ).schunk.cbytes
        for each in (blosc2.Filter.NOFILTER, blosc2.Filter.SHUFFLE)
    }
    settings["filters"] = [min(packed, key=lambda each: packed[each])]
    blosc2.asarray(
        np.ascontiguousarray(values), urlpath=str(path), chunks=chunks, blocks=blocks,
        cparams=settings,
    )  # fmt: skip


class Blosc2(Competitor):
    """Opened anew for every sample, one thread, memory-mapped."""

    name = "nnU-Net's blosc2"
    says = "b2nd files with nnU-Net 2.8's blocks, chunks and codec"

    def build(self) -> None:
        """Two files a case."""
        grid = (self.source.size.grid,) * 3
        for case in self.source.everything:
            self._save(self.folder, case, self.source.arrays(case), grid)

    def build_cut(self) -> None:
        """The same at the task's spacing."""
        (self.folder / "spaced").mkdir()
        patch = (self.source.size.patch,) * 3
        for case in self.source.cut:
            self._save(self.folder / "spaced", case, self.source.spaced(case), patch)

    def _save(self, folder: Path, case: str, arrays: Arrays, patch: Sequence[int]) -> None:
        image, label = arrays
        write(folder / f"{case}.b2nd", image, patch)
        write(folder / f"{case}_seg.b2nd", label[None], patch)

    def files(self) -> list[Path]:
        """Those at the grid."""
        return sorted(self.folder.glob("*.b2nd"))

    def read(self, case: str) -> Arrays:
        """Whole arrays."""
        image, label = self._open(self.folder, case)
        return image[...], label[0]

    def box(self, case: str, box: Box) -> Arrays:
        """The blocks that a box touches."""
        image, label = self._open(self.folder / "spaced", case)
        return image[(slice(None), *box)], label[(slice(0, 1), *box)][0]

    def _open(self, folder: Path, case: str) -> tuple[blosc2.NDArray, blosc2.NDArray]:
        blosc2.set_nthreads(1)
        image, label = (
            blosc2.open(
                str(folder / f"{case}{suffix}.b2nd"),
                mode="r",
                dparams={"nthreads": 1},
                mmap_mode="r",
            )
            for suffix in ("", "_seg")
        )
        return image, label
