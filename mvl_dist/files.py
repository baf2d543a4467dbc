"""Writing files so that nothing half-written is ever taken for whole."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from mvl_dist.errors import UserError

# What a killed process leaves begins with this; readers skip it, the next writer removes it.
PARTIAL = ".partial-"
# No room, no permission, or a file where a folder should be.
_USER_ERRNOS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR),
)


@contextlib.contextmanager
def full_disk_is_a_user_error(where: Path) -> Iterator[None]:
    """Turn 'no space left' and its kin into one line; the caller has left nothing half-written."""
    try:
        yield
    except OSError as error:
        if error.errno in _USER_ERRNOS:
            raise UserError(
                f"cannot write to {where}: {error.strerror}; nothing half-written was left: "
                "make room (or choose another folder) and run the same command again"
            ) from error
        raise


def write_text_atomically(path: Path, text: str) -> None:
    """Replace a file in one step: a reader sees the old text or the new, never a part."""
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """As `write_text_atomically`, for bytes."""
    partial = path.with_name(f"{PARTIAL}{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        with full_disk_is_a_user_error(path.parent):
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
