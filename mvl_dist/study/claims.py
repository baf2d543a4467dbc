"""Who trains a run now: a locked file a run, released by the kernel when its holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from mvl_dist.errors import UserError

FOLDER = "claims"
_held: set[tuple[Path, str]] = set()  # by this process: to itself its own runs are free


def _open(output: Path, key: str) -> int:
    try:
        (output / FOLDER).mkdir(parents=True, exist_ok=True)
        return os.open(output / FOLDER / key, os.O_RDWR | os.O_CREAT, 0o664)
    except OSError as error:
        raise UserError(
            f"cannot claim a run in {output / FOLDER} ({error.strerror}): choose another --output"
        ) from error


@contextlib.contextmanager
def claim(output: Path, key: str) -> Iterator[bool]:
    """Hold a run for the duration of a `with` block; False if another process holds it."""
    file = _open(output, key)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        _held.add((output, key))
        yield True
    finally:
        _held.discard((output, key))
        os.close(file)


def is_claimed(output: Path, key: str) -> bool:
    """Whether another process holds a run now."""
    if (output, key) in _held or not (output / FOLDER / key).exists():
        return False
    with claim(output, key) as free:
        return not free
