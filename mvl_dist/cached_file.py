"""The file of an array in the node's cache: a `.npy` whose values begin at a page's edge.

Of an array that is mostly zeros, as a label is, the pages of zeros are left out: to fill fresh
memory is what laying an array there costs (0.6 ms for a 128^3 label, 0.2 ms so), and it is a fifth
of the memory. Such a file is read (0.15 ms, mapped 0.22) and never mapped: to touch a hole in a
mapping takes memory that nobody counted, and ends the process where there is none.
"""

from __future__ import annotations

import io
import mmap
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mvl_dist.files import mapped

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PAGE = mmap.PAGESIZE
# Share of the bytes that may be there for holes to be worth it: beyond it, copying out of a mapping
# is faster than reading. A file of which less than the second is there has holes.
MOST_OF_HOLLOW, _HOLLOW = 0.55, 0.75
# Before all pages of a large array are looked at, one in so many is: not always in the same rows,
# as of a 128^3 label, whose slices are four pages, one in 16 would be.
_EVERY = 17


@dataclass(frozen=True)
class Pieces:
    """An array as its file is to be: `size` bytes, holes included, and what stands where."""

    size: int
    parts: list[tuple[int, memoryview]]

    @property
    def hollow(self) -> bool:
        """Whether there are holes."""
        return self.nbytes < self.size

    @property
    def nbytes(self) -> int:
        """Bytes of memory or disk that it will take, in whole pages."""
        return sum(-(-len(part) // PAGE) * PAGE for _, part in self.parts)

    def write(self, file: int) -> None:
        """Write all of it into a file that holds nothing.

        Raises:
            OSError: no room.
        """
        # Not through a mapping: on a full tmpfs that is a SIGBUS, and this an error.
        for offset, part in self.parts:
            while part:
                written = os.pwrite(file, part, offset)
                offset, part = offset + written, part[written:]
        os.ftruncate(file, self.size)


def pieces(values: npt.NDArray[Any], holes: bool) -> Pieces:
    """Cut an array into what is to be written.

    Args:
        holes: pages of zeros may be left out, where there are many.
    """
    import numpy as np

    flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)

    def of(runs: list[tuple[int, int]]) -> Pieces:
        there = [(PAGE + first, memoryview(flat[first:last])) for first, last in runs]  # type: ignore[arg-type]
        return Pieces(PAGE + flat.size, [(0, memoryview(_header(values))), *there])

    hollow = of(_runs(flat)) if holes else None
    if hollow is not None and hollow.nbytes <= MOST_OF_HOLLOW * hollow.size:
        return hollow
    return of([(0, flat.size)])


def _runs(flat: npt.NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Begin and end of the stretches of pages that are not all zeros; the whole where they are
    many."""
    import numpy as np

    whole = flat.size // PAGE * PAGE
    pages = flat[:whole].view(np.uint64).reshape(-1, PAGE // 8)
    for step in (_EVERY, 1) if len(pages) > _EVERY**2 else (1,):
        there = np.bitwise_or.reduce(pages[::step], axis=1) != 0
        if there.sum() > MOST_OF_HOLLOW * len(there):
            return [(0, flat.size)]
    edges = np.flatnonzero(np.diff(there, prepend=False, append=False)) * PAGE
    runs = list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
    return [*runs, (whole, flat.size)] if whole < flat.size else runs


def _header(values: npt.NDArray[Any]) -> bytes:
    """The header of a `.npy`, format version 1.0, filled up to a page."""
    import numpy as np

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, np.lib.format.header_data_from_array_1_0(np.ascontiguousarray(values))
    )
    magic, text = header.getvalue()[:8], header.getvalue()[10:].rstrip()
    length = PAGE - 10
    return magic + length.to_bytes(2, "little") + text.ljust(length - 1) + b"\n"


@dataclass(frozen=True)
class Hollow:
    """What is known of a file with holes."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, path: str, out: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
        """Its values, in `out` if that is of their shape and dtype.

        Raises:
            OSError: it is gone, or not whole.
        """
        import numpy as np

        fits = out is not None and (out.shape, out.dtype) == (self.shape, self.dtype)
        if out is None or not fits or not out.flags.c_contiguous:
            out = np.empty(self.shape, self.dtype)
        rest = memoryview(out.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        file, offset = os.open(path, os.O_RDONLY), PAGE
        try:
            while rest:
                size = os.preadv(file, [rest], offset)
                if not size:
                    raise OSError(f"{path} ends too early")
                offset, rest = offset + size, rest[size:]
        finally:
            os.close(file)
        return out


def known_of(path: str, status: os.stat_result, holes: bool) -> npt.NDArray[Any] | Hollow:
    """A file's array, mapped copy-on-write (torch would warn of one that cannot be written into),
    or what is to be known to read it.

    Args:
        status: the file's.
        holes: as when it was written.

    Raises:
        OSError: it is gone.
    """
    import numpy as np

    with open(path, "rb") as file:  # noqa: PTH123 - a Path costs more than the call
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        # A disk's file system may make any file look so: it is read then, not wrong but slower.
        if holes and taken(status) < _HOLLOW * status.st_size:
            return Hollow(shape, dtype)
        return np.ndarray(shape, dtype, mapped(file.fileno()), file.tell())


def most(nbytes: int) -> int:
    """Bytes that the file of an array of so many bytes takes at most."""
    return PAGE + -(-nbytes // PAGE) * PAGE


def taken(status: os.stat_result) -> int:
    """Bytes of memory or disk that a whole file takes; of one with holes, fewer than its size."""
    return min(status.st_size, status.st_blocks * 512)
