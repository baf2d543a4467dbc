"""`mvl unpack`: the tar files of the Medical Segmentation Decathlon into --msd-root."""

from __future__ import annotations

import shutil
import tarfile
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

import tyro.conf

from mvl_dist.errors import UserError
from mvl_dist.files import full_disk_is_a_user_error


@dataclass(frozen=True)
class UnpackOptions:
    """Unpack MSD archives; a task appears in --msd-root when it is whole."""

    archives: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Task04_Hippocampus.tar and its like."""
    msd_root: Path
    """Folder to put the tasks into."""


def _refuse_escape(archive: Path, member: tarfile.TarInfo) -> None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
        what = "is a link or a device" if not (member.isfile() or member.isdir()) else "leaves"
        raise UserError(
            f"{archive}: member '{member.name}' {what}{'' if 'link' in what else ' the folder'}; "
            "nothing was unpacked: fetch the archive from medicaldecathlon.com"
        )


def _is_wanted(member: tarfile.TarInfo) -> bool:
    """NIfTI files and dataset.json, but not macOS's `._*` doubles of them."""
    name = PurePosixPath(member.name).name
    if not member.isfile() or name.startswith("."):
        return False
    return name == "dataset.json" or name.lower().endswith((".nii.gz", ".nii"))


def unpack(archive: Path, msd_root: Path) -> tuple[Path, int]:
    """Unpack one archive; returns the task's folder and the number of files put there.

    Raises:
        UserError: no readable archive, a member that leaves the folder, not exactly one task in
            it, the task is already there, or a full disk. Nothing is left behind.
    """
    with full_disk_is_a_user_error(msd_root):
        msd_root.mkdir(parents=True, exist_ok=True)
    partial = msd_root / f".partial-{uuid.uuid4().hex[:8]}"
    count = 0
    try:
        with full_disk_is_a_user_error(msd_root), tarfile.open(archive) as tar:
            partial.mkdir()
            for member in tar:
                _refuse_escape(archive, member)
                if _is_wanted(member):
                    tar.extract(member, partial, filter="data")
                    count += 1
            tasks = sorted(path.parent for path in partial.glob("*/dataset.json"))
            if len(tasks) != 1:
                raise UserError(
                    f"{archive}: holds {len(tasks)} folders with a dataset.json, an MSD archive "
                    "holds one: fetch it from medicaldecathlon.com"
                )
            final = msd_root / tasks[0].name
            if final.exists():
                raise UserError(f"{final}: already there; delete it to unpack {archive} again")
            tasks[0].rename(final)
            return final, count
    except FileNotFoundError as error:
        raise UserError(f"{archive}: no such file") from error
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(f"{archive}: not a whole tar file ({error}); fetch it again") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def main(argv: list[str]) -> int:
    """Entry of `mvl unpack`."""
    options = tyro.cli(UnpackOptions, prog="mvl unpack", args=argv)
    for archive in options.archives:
        folder, count = unpack(archive, options.msd_root)
        print(f"{folder}: {count} files from {archive.name}", flush=True)
    return 0
