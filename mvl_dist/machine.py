"""What this machine, and this job's share of it, has left."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path

# Their files are read through the page cache of this machine, and nobody else's.
_OWN_DISKS = frozenset(
    ("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs")
)


def available_memory() -> int:
    """Bytes that this process may still take: of the machine, and of its control groups (v2)."""
    import psutil

    least = psutil.virtual_memory().available
    root = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = root / next(line[3:] for line in lines if line.startswith("0::")).strip("/")
        for group in (own, *own.parents):
            if group.is_relative_to(root):
                with contextlib.suppress(OSError, ValueError, KeyError):  # 'max' is no limit
                    limit = int((group / "memory.max").read_text())
                    used = int((group / "memory.current").read_text())
                    counts = dict(map(str.split, (group / "memory.stat").read_text().splitlines()))
                    # Files that the system may drop from memory are counted as used there.
                    least = min(least, limit - used + int(counts["inactive_file"]))
    return max(least, 0)


@functools.lru_cache(maxsize=256)
def on_own_disk(path: Path) -> bool:
    """Whether a path lies in a file system of this machine alone, and no network's or FUSE's."""
    import psutil

    kinds = {Path(disk.mountpoint): disk.fstype for disk in psutil.disk_partitions(all=True)}
    resolved = path.resolve()
    mounted = next((parent for parent in (resolved, *resolved.parents) if parent in kinds), None)
    return mounted is not None and kinds[mounted] in _OWN_DISKS
