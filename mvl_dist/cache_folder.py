"""Where a node's cache of decoded arrays lies, how large it may grow, and who removes it.

The folder lives as long as a process that has joined it. The last one to leave removes it; what
nobody could remove (kill -9 of all) is removed by the next one to join any such folder.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mvl_dist.errors import UserError
from mvl_dist.machine import available_memory
from mvl_dist.node_cache import NodeCache, is_at

SHARED_MEMORY = Path("/dev/shm")
USERS = "users"
GB = 1e9
_joined: dict[Path, int] = {}


@dataclass(frozen=True)
class Choice:
    """A place for a node's cache.

    Attributes:
        capacity: bytes it may hold.
        note: what a user should know of it, '' if nothing.
    """

    folder: Path
    capacity: int
    note: str = ""


def choose(store: str, cache_gb: float | Literal["auto"], sizes: Sequence[int]) -> Choice | None:
    """Where the arrays of a run should lie on this node; None if it is to have no cache.

    Shared memory, or `$TMPDIR` where that is too small. `auto` takes at most half of what is free,
    of memory too, within this process's control group.

    Args:
        store: the store's address; the cache of another store is another one.
        sizes: bytes of each array that the run will read.
    """
    if cache_gb == 0:
        return None
    limit = float("inf") if cache_gb == "auto" else cache_gb * GB
    want = min(sum(sizes), limit)
    shared, scratch = (
        _place(parent, store, cache_gb) for parent in (SHARED_MEMORY, Path(tempfile.gettempdir()))
    )
    chosen, note = shared, ""
    if want > shared.capacity:
        if scratch.capacity > shared.capacity:
            chosen = scratch
        note = (
            f"the cache of decoded cases wants {want / GB:.3g} GB; {SHARED_MEMORY} and memory have "
            f"{shared.capacity / GB:.3g} GB for it, so it lies in {chosen.folder.parent}, which "
            f"has {chosen.capacity / GB:.3g} GB"
        )
        if want > chosen.capacity:
            note += "; the cases used longest ago will be read from the store again"
    largest = max(sizes, default=0)
    capacity = int(min(chosen.capacity, limit))
    if not NodeCache(chosen.folder, capacity).fits(largest):
        note += "; " * bool(note) + (
            f"a case of {largest / GB:.3g} GB is larger than the cache of {capacity / GB:.3g} GB, "
            "and is read from the store each time: raise --cache-gb"
        )
    return Choice(chosen.folder, capacity, note)


def _place(parent: Path, store: str, cache_gb: float | Literal["auto"]) -> Choice:
    """A folder in a parent, with what it could hold there."""
    # The host, because scratch may turn out to be shared by nodes.
    name = hashlib.sha256(f"{socket.gethostname()} {store}".encode()).hexdigest()[:10]
    folder = parent / f"{_prefix()}{name}"
    try:
        disk = os.statvfs(parent)
    except OSError:
        return Choice(folder, 0)
    free = disk.f_bavail * disk.f_frsize
    if parent == SHARED_MEMORY:
        free = min(free, available_memory())
    room = free + NodeCache(folder, 0).held()
    return Choice(folder, room // 2 if cache_gb == "auto" else room)


def join(folder: Path) -> None:
    """Make a folder of the cache if it is not there, and keep it until this process ends.

    Raises:
        UserError: it cannot be made, or belongs to somebody else.
    """
    if folder in _joined:
        return
    try:
        _remove_abandoned(folder.parent)
        while folder not in _joined:
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile by its last user
                _join(folder)
    except OSError as error:
        raise UserError(
            f"cannot make the cache of decoded cases in {folder} ({error.strerror}): set $TMPDIR "
            "to a folder of this node, or do without by --cache-gb 0"
        ) from error
    atexit.register(leave, folder)


def _join(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise UserError(
            f"{folder} is not a folder of yours: whoever made it could feed a training with data "
            "of his; have it removed, or do without a cache by --cache-gb 0"
        )
    file = os.open(folder / USERS, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_SH)
        if is_at(file, folder / USERS):
            _joined[folder] = file
    finally:
        if folder not in _joined:
            os.close(file)


def leave(folder: Path, patience_s: float = 0.0) -> None:
    """Give a folder up; the last user removes it.

    Args:
        patience_s: how long to wait for users that are about to die.
    """
    file = _joined.pop(folder, None)
    if file is None:
        return
    until = time.monotonic() + patience_s
    while not (last := _locked(file)) and time.monotonic() < until:
        time.sleep(0.02)
    if last and is_at(file, folder / USERS):
        shutil.rmtree(folder, ignore_errors=True)
    os.close(file)


def leave_all(patience_s: float = 0.0) -> None:
    """Give up every folder, where a process is about to end without Python's own clean-up."""
    for folder in list(_joined):
        leave(folder, patience_s)


def _remove_abandoned(parent: Path) -> None:
    """Remove folders of this user that no living process uses."""
    for folder in parent.glob(f"{_prefix()}*"):
        with contextlib.suppress(OSError):
            if folder.lstat().st_uid != os.getuid() or folder in _joined:
                continue
            file = os.open(folder / USERS, os.O_RDWR)
            try:
                if _locked(file) and is_at(file, folder / USERS):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(file)


def _prefix() -> str:
    return f"mvl-{os.getuid()}-"


def _locked(file: int) -> bool:
    """Take a lock for oneself alone, if nobody else holds one."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
