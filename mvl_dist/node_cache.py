"""Decoded arrays in files that all processes of a node map: a case is decoded once a node.

    FOLDER/                    of one user and one store, in /dev/shm or on node-local scratch
      users                    every process that keeps the folder alive holds a shared lock on it
      room                     how many bytes the folder holds, at most; locked while room is made
      KEY.npy                  an array, whole (mvl_dist/cached_file.py)
      .partial-KEY             an array that is being filled, locked by who fills it

Locks are flock's: the kernel releases them when their holder dies, however it dies. A file is
renamed to its name when it is whole, so that whoever is killed leaves nothing that a reader takes.
`mvl_dist.cache_folder` says where such a folder lies, and who removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvl_dist.cached_file import Hollow, known_of, most, pieces, taken
from mvl_dist.files import PARTIAL

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
        self._known: dict[str, tuple[int, npt.NDArray[Any] | Hollow]] = {}
        # Those that are not worth keeping.
        self._dense: set[str] = set()
        self._told = False

    def __reduce__(self) -> tuple[Any, ...]:
        return NodeCache, (self.folder, self.capacity)

    def array(
        self,
        key: str,
        load: Callable[[], npt.NDArray[Any]],
        out: npt.NDArray[Any] | None = None,
        holes: bool = False,
        dense: bool = True,
    ) -> npt.NDArray[Any]:
        """The array of a key, loaded by whichever process of the node asks first.

        What is written into it stays in this process. Where there is no room, and nothing that
        could make way, the loaded array is returned as it is.

        Args:
            key: names the content too (a checksum), for it is never asked whether it changed.
            out: what to read it into where that saves a copy; the result may lie elsewhere.
            holes: it is always read whole, so that its zeros need not be kept.
            dense: else it is kept only if it is mostly zeros.

        Raises:
            Exception: whatever `load` raises; the next to ask loads anew.
        """
        if key in self._dense:
            return load()
        partial = self.folder / f"{PARTIAL}{key}"
        while True:
            there = self.find(key, out, holes)
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
                    return self._fill(key, file, partial, load, holes, dense)
            finally:
                os.close(file)

    def find(
        self, key: str, out: npt.NDArray[Any] | None = None, holes: bool = False
    ) -> npt.NDArray[Any] | None:
        """The array of a key if it is there; it becomes the one most recently used.

        Args:
            out, holes: as for `array`.
        """
        path = self._path(key)
        try:
            os.utime(path)
            status = os.stat(path)  # noqa: PTH116 - a Path costs more than the call
            known = self._known.get(key)
            if known is None or known[0] != status.st_ino:
                known = status.st_ino, known_of(path, status, holes)
                self._known[key] = known
            values = known[1]
            return values.read(path, out) if isinstance(values, Hollow) else values
        except OSError:  # not there, or the folder cannot be used, which `array` tells
            # An evicted file takes memory for as long as it is mapped.
            self._known.clear()
            return None

    def holds(self, key: str) -> bool:
        """Whether the array of a key is there; nothing is used by asking."""
        return Path(self._path(key)).exists()

    def fits(self, nbytes: int) -> bool:
        """Whether an array of so many bytes could ever be held."""
        return most(nbytes) <= self.capacity

    def held(self) -> int:
        """Bytes that all files take now."""
        return sum(held for _, _, held in self._files())

    def _path(self, key: str) -> str:
        return f"{self.folder}/{key}{WHOLE}"

    def _fill(
        self,
        key: str,
        file: int,
        partial: Path,
        load: Callable[[], npt.NDArray[Any]],
        holes: bool,
        dense: bool,
    ) -> npt.NDArray[Any]:
        try:
            values = load()
            try:
                parts = pieces(values, holes)
                if not (dense or parts.hollow):
                    self._dense.add(key)
                elif self._reserve(file, parts.nbytes):
                    parts.write(file)
                    partial.rename(self._path(key))
            except OSError as error:
                self._tell(error)
        finally:
            if is_at(file, partial):
                partial.unlink()
        # Mapped by who asks for it again: it is still warm here as it was loaded.
        return values

    def _reserve(self, file: int, size: int) -> bool:
        """Give a file the size that it will take and count it, if room can be made."""
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
        used = sum(held for _, _, held in files)
        for path, _, held in sorted(files, key=lambda file: file[1]):
            if used + size <= self.capacity:
                break
            # Whoever maps it keeps it; one that is being filled is not whole, and stays.
            if path.suffix == WHOLE:
                path.unlink()
                used -= held
        return used

    def _files(self) -> list[tuple[Path, int, int]]:
        """Arrays, whole or being filled, each with its time of use and the bytes that it takes."""
        found = []
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                whole = entry.name.endswith(WHOLE)
                if whole or entry.name.startswith(PARTIAL):
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        # What is being filled counts for what it will take, or with its holes.
                        held = taken(status) if whole else status.st_size
                        found.append((Path(entry.path), status.st_mtime_ns, held))
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
