import io
import tarfile
from pathlib import Path

import pytest

from data_prep.unpack import main
from mvl_dist.errors import UserError
from tests.data_prep.tiny import CASES, NAME, convert_tiny, make_tiny


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A tiny task as MSD's tar files are: with macOS doubles and files that nobody needs."""
    folder = make_tiny(tmp_path / "made")
    (folder / "._dataset.json").write_text("{")
    (folder / "imagesTr" / f"._{CASES[0]}.nii.gz").write_bytes(b"\0\5\x16\7")
    (folder / "readme.txt").write_text("hello")
    with tarfile.open(tmp_path / "tiny.tar", "w") as tar:
        tar.add(folder, NAME)
    return tmp_path / "tiny.tar"


def run(archive: Path, root: Path) -> int:
    return main([str(archive), "--msd-root", str(root)])


def test_a_task_comes_out_ready_to_convert(archive: Path, tmp_path: Path) -> None:
    assert run(archive, tmp_path / "msd") == 0
    folder = tmp_path / "msd" / NAME
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert names == {"dataset.json", *(f"{case}.nii.gz" for case in CASES)}
    assert len(convert_tiny(folder, tmp_path / "s")[1].cases) == 8
    assert [path.name for path in (tmp_path / "msd").iterdir()] == [NAME]
    with pytest.raises(UserError, match="already there"):
        run(archive, tmp_path / "msd")


def member(name: str, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    "evil",
    [
        member(f"{NAME}/../../evil.nii.gz"),
        member("/tmp/evil.nii.gz"),
        member(f"{NAME}/evil.nii.gz", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member(f"{NAME}/evil.nii.gz", type=tarfile.LNKTYPE, linkname=f"{NAME}/dataset.json"),
        member(f"{NAME}/evil.nii.gz", type=tarfile.CHRTYPE),
    ],
    ids=["parent", "absolute", "symlink", "hard link", "device"],
)
def test_an_archive_that_tries_to_leave_is_refused_whole(
    archive: Path, tmp_path: Path, evil: tarfile.TarInfo
) -> None:
    with tarfile.open(archive, "a") as tar:
        tar.addfile(evil, io.BytesIO())
    with pytest.raises(UserError, match=r"evil\.nii\.gz") as caught:
        run(archive, tmp_path / "a" / "msd")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "a").rglob("*")) == [tmp_path / "a" / "msd"]


def test_a_broken_or_foreign_archive_leaves_nothing(archive: Path, tmp_path: Path) -> None:
    root = tmp_path / "msd"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a whole tar file"):
        run(archive, root)
    archive.write_bytes(b"<html>" * 200)
    with pytest.raises(UserError, match="not a whole tar file"):
        run(archive, root)
    with tarfile.open(archive, "w") as tar:
        tar.addfile(member("a/readme.txt"), io.BytesIO())
    with pytest.raises(UserError, match=r"holds 0 folders with a dataset\.json"):
        run(archive, root)
    with pytest.raises(UserError, match="no such file"):
        run(tmp_path / "none.tar", root)
    assert list(root.iterdir()) == []
