"""Who trains a run now: a lease on the shared file system that its holder keeps young.

    OUTPUT/claims/KEY.0, KEY.1, ...    one file a lease; the highest number holds

A lease is taken by linking a complete file to a name that must not exist, which is atomic on NFS
and Lustre too, where locks are often off. Its holder touches it; one that was not touched for
`LEASE_SECONDS` is dead, and the next number may be taken. Ages are compared between files of one
folder, so they are the file server's time: a node's clock may be wrong by hours.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mvl_dist.errors import UserError

FOLDER = "claims"
LEASE_SECONDS = 120.0
BEATS_A_LEASE = 6


def lease_seconds() -> float:
    """Age at which an untouched lease is over: $MVL_LEASE_SECONDS, else two minutes."""
    return float(os.environ.get("MVL_LEASE_SECONDS", LEASE_SECONDS))


@contextlib.contextmanager
def lease(output: Path, key: str, lost: Callable[[str], None] | None = None) -> Iterator[bool]:
    """Hold a run for the duration of a `with` block; False if another process holds it.

    Args:
        output: folder that all launches of a study share.
        key: the run's key.
        lost: called from another thread when the lease was lost while it was held (the process was
            frozen for longer than a lease lasts, and another one took the run); by default the
            process ends at once, because from then on two of them would write into one folder.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = output / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = _take(folder, key)
    except OSError as error:
        raise UserError(
            f"cannot claim a run in {folder} ({error.strerror}): choose another --output"
        ) from error
    if path is None:
        yield False
        return
    file = os.open(path, os.O_RDWR)
    ended = threading.Event()
    keeper = threading.Thread(target=_keep, args=(path, file, ended, lost or _end), daemon=True)
    keeper.start()
    try:
        yield True
    finally:
        ended.set()
        keeper.join()
        if _still_mine(path, file):
            path.unlink(missing_ok=True)
        os.close(file)


def holder(output: Path, key: str) -> str:
    """Which other process holds a run now ('host, process 12, job 34'), '' if none does."""
    newest = _newest(output / FOLDER, key)
    if newest is None or _is_over(newest):
        return ""
    about = _read(newest)
    if about.get("machine") == _machine() and about.get("pid") == os.getpid():
        return ""  # to itself its own runs are free
    job = f", job {about['job']}" if about.get("job") else ""
    return f"{about.get('host', 'unknown host')}, process {about.get('pid', '?')}{job}"


def _take(folder: Path, key: str) -> Path | None:
    newest = _newest(folder, key)
    if newest is not None and not _is_over(newest):
        return None
    mine = folder / f"{key}.{_number(newest) + 1 if newest else 0}"
    if not _write(folder, mine):
        return None
    # Whoever saw no lease long ago and is woken now must not hold an older number.
    if _newest(folder, key) != mine:
        mine.unlink(missing_ok=True)
        return None
    if newest is not None:
        newest.unlink(missing_ok=True)
    return mine


def _write(folder: Path, path: Path) -> bool:
    about = {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID", ""),
    }
    whole = folder / f".{uuid.uuid4().hex}"
    whole.write_text(json.dumps(about))
    try:
        os.link(whole, path)
    except FileExistsError:
        return False
    finally:
        whole.unlink()
    return True


def _keep(path: Path, file: int, ended: threading.Event, lost: Callable[[str], None]) -> None:
    while not ended.wait(lease_seconds() / BEATS_A_LEASE):
        if not _still_mine(path, file):
            lost(f"lost the lease {path}: another process trains this run now")
            return
        with contextlib.suppress(OSError):  # a file server that is away for a moment
            os.utime(file)


def _still_mine(path: Path, file: int) -> bool:
    # By the open file, because a later holder's may have the same name.
    try:
        return os.fstat(file).st_nlink > 0 and _newest(path.parent, path.stem) == path
    except OSError as error:
        return error.errno != errno.ESTALE


def _end(reason: str) -> None:
    print(f"error: {reason}", flush=True)
    os._exit(1)


def _newest(folder: Path, key: str) -> Path | None:
    return max(folder.glob(f"{key}.*"), key=_number, default=None)


def _number(path: Path) -> int:
    return int(path.suffix[1:])


def _is_over(path: Path) -> bool:
    about = _read(path)
    if about.get("machine") == _machine():
        return _started(int(about["pid"])) != about.get("started")
    try:
        return _server_time(path.parent) - path.stat().st_mtime > lease_seconds()
    except FileNotFoundError:
        return True


def _server_time(folder: Path) -> float:
    """The file server's clock: the time that it gives a file touched now."""
    probe = folder / f".{uuid.uuid4().hex}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


@functools.cache
def _machine() -> str:
    """What process numbers are unique in: this boot of this machine, and its PID namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def _started(pid: int) -> int:
    """When a process of this machine began, in clock ticks since boot; 0 if there is none."""
    try:
        # The name in parentheses may hold spaces; the start is the 22nd field.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError):
        return 0


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, json.JSONDecodeError):
        return {}
