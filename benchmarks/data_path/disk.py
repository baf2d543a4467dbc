"""The page cache, and the disk under it."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil

DROP = Path("/proc/sys/vm/drop_caches")
THROTTLES = Path("/sys/fs/cgroup/blkio")


def forget(files: Sequence[Path], everything: bool) -> str:
    """Take files out of the page cache; returns how, in words.

    Args:
        everything: all that the system caches, folders and inodes too, where a user may do so.
    """
    for path in files:
        file = os.open(path, os.O_RDONLY)
        os.fdatasync(file)  # what is not yet on the disk cannot be dropped
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
    if everything:
        try:
            DROP.write_text("3")
            return f"{DROP} and posix_fadvise(DONTNEED) on the files"
        except OSError:
            pass
    return "posix_fadvise(DONTNEED) on the files; folders and inodes stay cached"


def cached_share(files: Sequence[Path]) -> float:
    """Share of the files' pages that lie in the page cache (mincore)."""
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    there = pages = 0
    for path in files:
        size = path.stat().st_size
        if not size:
            continue
        with path.open("rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as view:
            array = np.frombuffer(view, np.uint8)
            found = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
            arguments = (ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(size))
            if mincore(*arguments, ctypes.c_void_p(found.ctypes.data)):
                raise OSError(ctypes.get_errno(), "mincore", str(path))
            there += int((found & 1).sum())
            pages += found.size
            del array
    return there / max(pages, 1)


def read_mb_per_s(files: Sequence[Path]) -> float:
    """MB/s at which files are read one after the other, as they lie."""
    buffer = bytearray(1 << 22)
    started, total = time.perf_counter(), 0
    for path in files:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total / 1e6 / (time.perf_counter() - started)


def why_not_limited(folder: Path) -> str:
    """Why this process may not limit its disk's rate, '' if it may."""
    try:
        with limited(folder, 1000):
            return ""
    except (OSError, StopIteration) as error:
        return f"no blkio control group here ({error})"


@contextlib.contextmanager
def limited(folder: Path, mb_per_s: int) -> Iterator[None]:
    """This process and its children read the folder's disk at so many MB/s, all together.

    Raises:
        OSError: not on this system, or not as this user.
    """
    mine = next(
        line.split(":")[2]
        for line in Path("/proc/self/cgroup").read_text().splitlines()
        if "blkio" in line.split(":")[1].split(",")
    )
    home = THROTTLES / mine.lstrip("/")
    group = home / f"mvl-bench-{os.getpid()}"
    group.mkdir()
    try:
        device = folder.stat().st_dev
        limit = f"{os.major(device)}:{os.minor(device)} {mb_per_s * 1_000_000}"
        (group / "blkio.throttle.read_bps_device").write_text(limit)
        _move(group)
        yield
    finally:
        _move(home)
        group.rmdir()


def _move(group: Path) -> None:
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(ProcessLookupError):
            (group / "cgroup.procs").write_text(str(process.pid))
