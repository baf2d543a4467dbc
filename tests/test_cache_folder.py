"""Where the node's cache lies, what is said of it, and that nothing of it stays behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mvl_dist import cache_folder
from mvl_dist.cache_folder import choose, join, leave
from mvl_dist.errors import UserError
from mvl_dist.machine import available_memory

REPO = Path(__file__).resolve().parent.parent
GB = 10**9


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Bytes free in a shared memory and a scratch of this test's own."""
    free = {"shm": 0, "scratch": 0}
    for name in free:
        (tmp_path / name).mkdir()
    monkeypatch.setattr(cache_folder, "SHARED_MEMORY", tmp_path / "shm")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr(cache_folder, "available_memory", lambda: 10**15)

    def disk(path: Path) -> os.statvfs_result:
        return os.statvfs_result((1, 1, 0, 0, free[Path(path).name], 0, 0, 0, 0, 255))

    monkeypatch.setattr("os.statvfs", disk)
    return free


def test_auto_takes_at_most_half_of_shared_memory(places: dict[str, int], tmp_path: Path) -> None:
    places.update(shm=10 * GB, scratch=100 * GB)
    choice = choose("store", "auto", [GB] * 4)
    assert choice is not None
    assert choice.folder.parent == tmp_path / "shm"
    assert (choice.capacity, choice.note) == (5 * GB, "")


def test_shared_memory_is_no_larger_than_the_memory_behind_it(
    places: dict[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    places.update(shm=10 * GB, scratch=100 * GB)
    monkeypatch.setattr(cache_folder, "available_memory", lambda: 4 * GB)
    choice = choose("store", "auto", [GB] * 4)
    assert choice is not None
    assert choice.folder.parent == tmp_path / "scratch"


def test_a_shared_memory_that_is_too_small_gives_way_to_scratch_with_the_figures(
    places: dict[str, int], tmp_path: Path
) -> None:
    places.update(shm=2 * GB, scratch=100 * GB)
    choice = choose("store", "auto", [GB] * 4)
    assert choice is not None
    assert choice.folder.parent == tmp_path / "scratch"
    assert "wants 4 GB" in choice.note
    assert "have 1 GB for it" in choice.note
    assert f"lies in {tmp_path / 'scratch'}, which has 50 GB" in choice.note
    assert "\n" not in choice.note


def test_where_nothing_is_large_enough_the_larger_one_is_taken(
    places: dict[str, int], tmp_path: Path
) -> None:
    places.update(shm=6 * GB, scratch=2 * GB)
    choice = choose("store", "auto", [GB] * 4)
    assert choice is not None
    assert choice.folder.parent == tmp_path / "shm"
    assert "read from the store again" in choice.note


def test_a_size_asked_for_is_taken_where_there_is_room(
    places: dict[str, int], tmp_path: Path
) -> None:
    places.update(shm=5 * GB, scratch=100 * GB)
    choice = choose("store", 4.0, [GB] * 10)
    assert choice is not None
    assert (choice.folder.parent, choice.capacity) == (tmp_path / "shm", 4 * GB)
    assert choose("store", 0.0, [GB] * 10) is None


def test_a_case_larger_than_the_cache_is_said(places: dict[str, int]) -> None:
    places.update(shm=5 * GB, scratch=5 * GB)
    choice = choose("store", 0.5, [GB])
    assert choice is not None
    assert "a case of 1 GB is larger than the cache of 0.5 GB" in choice.note


def test_stores_do_not_share_a_folder(places: dict[str, int]) -> None:
    folders = [choose(store, "auto", []).folder for store in ("a", "b", "a")]  # type: ignore[union-attr]
    assert folders[0] == folders[2] != folders[1]


def test_memory_is_no_more_than_the_machines() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < available_memory() < total


USER = """
import sys, time
from pathlib import Path
from mvl_dist.cache_folder import join
join(Path(sys.argv[1]))
(Path(sys.argv[1]) / "case.npy").touch()
print("joined", flush=True)
sys.stdin.readline()
"""


def user(folder: Path) -> "subprocess.Popen[str]":
    """A process that uses a folder until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", USER, str(folder)],
        cwd=REPO,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "joined\n"
    return process


def mine(tmp_path: Path, name: str = "store") -> Path:
    return tmp_path / f"mvl-{os.getuid()}-{name}"


def test_the_last_user_removes_the_folder(tmp_path: Path) -> None:
    folder = mine(tmp_path)
    first, second = user(folder), user(folder)
    first.communicate("\n", timeout=60)
    assert (folder / "case.npy").exists()
    second.communicate("\n", timeout=60)
    assert not folder.exists()


def test_what_the_killed_left_is_removed_by_the_next_start_and_the_livings_is_not(
    tmp_path: Path,
) -> None:
    own, of_the_dead, of_the_living = (mine(tmp_path, name) for name in ("own", "dead", "living"))
    killed, also_killed, living = user(own), user(of_the_dead), user(of_the_living)
    for process in (killed, also_killed):
        process.kill()
        process.communicate(timeout=60)
    assert (own / "case.npy").exists()
    assert (of_the_dead / "case.npy").exists()
    join(own)
    try:
        assert [path.name for path in own.iterdir()] == ["users"]
        assert not of_the_dead.exists()
        assert (of_the_living / "case.npy").exists()
    finally:
        leave(own)
        living.communicate("\n", timeout=60)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_another_user_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = mine(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="not a folder of yours"):
        join(folder)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--cache-gb 0") as caught:
        join(tmp_path / "file" / f"mvl-{os.getuid()}-x")
    assert len(str(caught.value).splitlines()) == 1
