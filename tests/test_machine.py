"""What this machine says of itself."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from mvl_dist.machine import on_own_disk


@pytest.mark.parametrize(
    ("path", "own"),
    [("/data/store", True), ("/data/lustre/store", False), ("/home/me", False), ("/scratch", True)],
)
def test_the_nearest_mount_decides_whose_disk_it_is(
    path: str, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = {
        **{"/": "overlay", "/data": "xfs", "/data/lustre": "lustre"},
        **{"/home": "nfs4", "/scratch": "ext4"},
    }
    disks = [SimpleNamespace(mountpoint=at, fstype=kind) for at, kind in mounts.items()]
    monkeypatch.setattr("psutil.disk_partitions", lambda all: disks)
    assert on_own_disk.__wrapped__(Path(path)) is own
