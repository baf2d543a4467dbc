"""Decoded arrays in files that all processes of a node map: a case is decoded once a node.

    FOLDER/                    of one user and one store, in /dev/shm or on node-local scratch
      users                    every process that keeps the folder alive holds a shared lock on it
      room                     how many bytes the folder holds, at most; locked while room is made
      KEY.npy                  an array, whole
      .partial-KEY             an array that is being filled, locked by who fills it

Locks are flock's: the kernel releases them when their holder dies, however it dies. A file is
renamed to its name when it is whole, so that whoever is killed leaves nothing that a reader takes.
`mvl_dist.cache_folder` says where such a folder lies, and who removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvl_dist.files import PARTIAL, mapped

if TYPE_CHECKING:
    import numpy.typing as npt

WHOLE = ".npy"
ROOM, TOLD = "room", "told"


class NodeCache:
    """A bounded set of decoded arrays; the least recently used make room. Small to pickle.

    Args:
        folder: made and kept by `mvl_dist.cache_folder.join`. Without it, or without a right to
            write there, every array is loaded anew.
        capacity: bytes of all files together, those being filled among them.
    """

    def __init__(self, folder: Path, capacity: int) -> None:
        self.folder, self.capacity = folder, capacity
        # Mapping a file and touching its pages costs more than copying it (1.1 ms against 0.5 ms
        # for 4 MB), so this process keeps its mappings, each with the number of its file.
        self._mapped: dict[str, tuple[int, npt.NDArray[Any]]] = {}
        self._told = False

    def __reduce__(self) -> tuple[Any, ...]:
        return NodeCache, (self.folder, self.capacity)

    def array(self, key: str, load: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """The array of a key, loaded by whichever process of the node asks first.

        What is written into it stays in this process. Where there is no room, and nothing that
        could make way, the loaded array is returned as it is.

        Args:
            key: names the content too (a checksum), for it is never asked whether it changed.

        Raises:
            Exception: whatever `load` raises; the next to ask loads anew.
        """
        partial = self.folder / f"{PARTIAL}{key}"
        while True:
            there = self.find(key)
            if there is not None:
                return there
            try:
                file = os.open(partial, os.O_RDWR | os.O_CREAT, 0o600)
            except OSError as error:  # gone or read-only: not worth a training's end
                self._tell_unusable(error)
                return load()
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                # Else whoever held the lock has renamed it, or given up.
                if is_at(file, partial):
                    return self._fill(key, file, partial, load)
            finally:
                os.close(file)

    def find(self, key: str) -> npt.NDArray[Any] | None:
        """The array of a key if it is there; it becomes the one most recently used."""
        path = self._path(key)
        try:
            os.utime(path)
            number = os.stat(path).st_ino  # noqa: PTH116 - a Path costs more than the call
            known = self._mapped.get(key)
            if known is None or known[0] != number:
                known = number, _mapped(path)
                self._mapped[key] = known
        except OSError:  # not there, or the folder cannot be used, which `array` tells
            # An evicted file takes memory for as long as it is mapped.
            self._mapped.clear()
            return None
        return known[1]

    def holds(self, key: str) -> bool:
        """Whether the array of a key is there; nothing is used by asking."""
        return Path(self._path(key)).exists()

    def fits(self, nbytes: int) -> bool:
        """Whether an array of so many bytes could ever be held."""
        return nbytes + mmap.PAGESIZE <= self.capacity

    def held(self) -> int:
        """Bytes of all files now."""
        return sum(status.st_size for _, status in self._files())

    def _path(self, key: str) -> str:
        return f"{self.folder}/{key}{WHOLE}"

    def _fill(
        self, key: str, file: int, partial: Path, load: Callable[[], npt.NDArray[Any]]
    ) -> npt.NDArray[Any]:
        try:
            values = load()
            try:
                if self._reserve(file, values):
                    _write(file, values)
                    partial.rename(self._path(key))
            except OSError as error:
                self._tell(error)
        finally:
            if is_at(file, partial):
                partial.unlink()
        # Mapped by who asks for it again: it is still warm here as it was loaded.
        return values

    def _reserve(self, file: int, values: npt.NDArray[Any]) -> bool:
        """Give a file its size and count it, if room can be made."""
        size = len(_header(values)) + values.nbytes
        with self._room() as (used, count):
            os.ftruncate(file, 0)  # left by who died while filling it
            if used + size > self.capacity >= size:  # else no eviction would help
                used = self._evict(size)
            fits = used + size <= self.capacity
            # Counted before it is there: a process that dies here leaves too high a number, which
            # the next one to need room puts right.
            count(used + size if fits else used)
            if fits:
                os.ftruncate(file, size)
        return fits

    @contextlib.contextmanager
    def _room(self) -> Iterator[tuple[int, Callable[[int], None]]]:
        file = os.open(self.folder / ROOM, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Fixed width: written in one go, so that no reader meets half a number.
            yield (
                int(os.pread(file, 20, 0) or b"0"),
                lambda used: _all_written(os.pwrite(file, b"%020d" % used, 0)),
            )
        finally:
            os.close(file)

    def _evict(self, size: int) -> int:
        """Remove the least recently used until so many bytes fit; return the bytes that remain."""
        files = self._files()
        used = sum(status.st_size for _, status in files)
        for path, status in sorted(files, key=lambda pair: pair[1].st_mtime_ns):
            if used + size <= self.capacity:
                break
            # Whoever maps it keeps it; one that is being filled is not whole, and stays.
            if path.suffix == WHOLE:
                path.unlink()
                used -= status.st_size
        return used

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        """Arrays, whole or being filled."""
        found = []
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(WHOLE) or entry.name.startswith(PARTIAL):
                    with contextlib.suppress(FileNotFoundError):
                        found.append((Path(entry.path), entry.stat(follow_symlinks=False)))
        return found

    def _tell(self, error: OSError) -> None:
        """Say once a node that something else has filled the place."""
        with contextlib.suppress(OSError):
            os.close(os.open(self.folder / TOLD, os.O_CREAT | os.O_EXCL, 0o600))
            _note(
                f"{self.folder} cannot take another case ({error.strerror}); what it does not hold "
                "is read from the store: make room there, or lower --cache-gb"
            )

    def _tell_unusable(self, error: OSError) -> None:
        """Say once a process that nothing is kept any more."""
        if not self._told:
            self._told = True
            _note(
                f"the cache of decoded cases in {self.folder} cannot be used ({error.strerror}): "
                "every case is read from the store each time; start again for a new one"
            )


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)


def is_at(file: int, path: Path) -> bool:
    """Whether a path still names an open file."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _all_written(written: int) -> None:
    if written != 20:
        raise OSError("short write")


def _header(values: npt.NDArray[Any]) -> bytes:
    import numpy as np

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, np.lib.format.header_data_from_array_1_0(np.ascontiguousarray(values))
    )
    return header.getvalue()


def _write(file: int, values: npt.NDArray[Any]) -> None:
    import numpy as np

    flat: Any = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    os.lseek(file, 0, os.SEEK_SET)
    # Not through a mapping: on a full tmpfs that is a SIGBUS, and this an error.
    for part in (memoryview(_header(values)), memoryview(flat)):
        while part:
            part = part[os.write(file, part) :]


def _mapped(path: str) -> npt.NDArray[Any]:
    """An array mapped copy-on-write: torch would warn of one that cannot be written into."""
    import numpy as np

    with open(path, "rb") as file:  # noqa: PTH123 - a Path costs more than the call
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        return np.ndarray(shape, dtype, mapped(file.fileno()), file.tell())
