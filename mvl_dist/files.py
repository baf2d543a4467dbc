"""Writing files so that nothing half-written is ever taken for whole, and mapping them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from mvl_dist.errors import UserError

# What a killed process leaves begins with this; readers skip it, the next writer removes it.
PARTIAL = ".partial-"
# A file up to this size is mapped with all its pages, in half the time of touching each (1.3 ms
# against 2.5 ms for 4 MB); of a larger one mostly a part is wanted.
_AT_ONCE = 64_000_000
_MADV_POPULATE_READ = 22
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


def sha256_of(path: Path) -> str:
    """Checksum of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text_atomically(path: Path, text: str) -> None:
    """Replace a file in one step: a reader sees the old text or the new, never a part."""
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Replace a file in one step: a reader sees the old bytes or the new, never a part."""
    partial = path.with_name(f"{PARTIAL}{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        with full_disk_is_a_user_error(path.parent):
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def mapped(file: int) -> mmap.mmap:
    """A whole file copy-on-write: what is written into the mapping stays in this process.

    Args:
        file: its descriptor, which may be closed afterwards.
    """
    memory = mmap.mmap(file, 0, access=mmap.ACCESS_COPY)
    if len(memory) <= _AT_ONCE:
        with contextlib.suppress(OSError):  # Linux before 5.14: page by page
            memory.madvise(_MADV_POPULATE_READ)
    return memory
