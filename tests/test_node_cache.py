"""The node's cache of decoded arrays: among processes, when one is killed, when room runs out."""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from mvl_dist.cached_file import PAGE
from mvl_dist.case_reader import CaseReader
from mvl_dist.node_cache import NodeCache
from mvl_dist.store import read_array, read_manifest

Array = np.ndarray

REPO = Path(__file__).resolve().parent.parent
MB = 2**20


def megabyte(number: int) -> Array:
    """An array that its number decides, of a megabyte less its header."""
    return np.random.default_rng(number).integers(0, 256, MB - PAGE, dtype=np.uint8)


def counted(folder: Path, number: int) -> Array:
    """As a slow load that leaves a mark each time."""
    (folder / f"load-{number}-{os.getpid()}-{time.monotonic_ns()}").touch()
    time.sleep(0.05)
    return megabyte(number)


def ask(arguments: tuple[Path, Path, int, list[int]]) -> int:
    """A process of a node: asks for arrays, checks them, returns the most bytes that it saw."""
    folder, marks, capacity, numbers = arguments
    cache = NodeCache(folder, capacity)
    most = 0
    for number in numbers:
        values = cache.array(str(number), lambda number=number: counted(marks, number))
        np.testing.assert_array_equal(values, megabyte(number))
        most = max(most, taken(folder))
    return most


def taken(folder: Path) -> int:
    """Bytes of all files at one moment: nobody makes room meanwhile, and one that gets its name
    between two looks is one file.
    """
    sizes = {}
    with (folder / "room").open("a") as room:
        fcntl.flock(room, fcntl.LOCK_EX)
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                sizes[status.st_ino] = status.st_size
    return sum(sizes.values())


def test_processes_load_an_array_once_between_them(folder: Path, tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        jobs = [(folder, tmp_path, 100 * MB, [0, 1, 2, 3])] * 4
        list(pool.map(ask, jobs))
    assert len(list(tmp_path.glob("load-*"))) == 4


def test_the_bound_holds_while_processes_fill(folder: Path, tmp_path: Path) -> None:
    orders = [[int(n) for n in np.random.default_rng(seed).permutation(8)] for seed in range(4)]
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        jobs = [(folder, tmp_path, 3 * MB, order) for order in orders]
        most = max(pool.map(ask, jobs))
    assert 2 * MB < most <= 3 * MB + 100  # the file that counts the room has 20 bytes
    held = [path for path in folder.iterdir() if path.suffix == ".npy"]
    assert len(held) == 3
    assert not list(folder.glob(".partial-*"))


def test_what_was_used_longest_ago_makes_room(folder: Path) -> None:
    cache = NodeCache(folder, 2 * MB)
    for number in (0, 1, 0, 2):  # 1 is the oldest when 2 comes
        cache.array(str(number), lambda number=number: megabyte(number))
        time.sleep(0.01)
    assert sorted(path.stem for path in folder.glob("*.npy")) == ["0", "2"]


def test_an_array_in_use_survives_its_eviction(folder: Path) -> None:
    cache = NodeCache(folder, MB)
    first = cache.array("0", lambda: megabyte(0))
    cache.array("1", lambda: megabyte(1))
    assert [path.stem for path in folder.glob("*.npy")] == ["1"]
    np.testing.assert_array_equal(first, megabyte(0))


def test_writing_into_an_array_changes_nobody_elses(folder: Path) -> None:
    NodeCache(folder, MB).array("0", lambda: megabyte(0))[:] = 7
    np.testing.assert_array_equal(NodeCache(folder, MB).array("0", _never), megabyte(0))


def _never() -> Array:
    raise AssertionError("loaded again")


KILLED = """
import os, sys, signal
from pathlib import Path
from mvl_dist import cached_file, node_cache
from tests.test_node_cache import megabyte
def half(pieces, file):
    os.write(file, bytes(pieces.parts[0][1])[:1000])
    print("half", flush=True)
    signal.pause()
cached_file.Pieces.write = half
node_cache.NodeCache(Path(sys.argv[1]), 2 * 2**20).array("0", lambda: megabyte(0))
"""


def test_a_process_killed_while_it_fills_leaves_nothing_that_is_taken_for_whole(
    folder: Path,
) -> None:
    killed = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder)], cwd=REPO, stdout=subprocess.PIPE, text=True
    )
    assert killed.stdout is not None
    assert killed.stdout.readline() == "half\n"
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    assert list(folder.glob(".partial-*"))
    cache = NodeCache(folder, 2 * MB)
    assert cache.find("0") is None
    np.testing.assert_array_equal(cache.array("0", lambda: megabyte(0)), megabyte(0))
    # Its bytes are not counted for ever: a second array still fits.
    cache.array("1", lambda: megabyte(1))
    assert sorted(path.stem for path in folder.glob("*.npy")) == ["0", "1"]
    assert not list(folder.glob(".partial-*"))


def test_a_load_that_fails_is_raised_and_done_again(folder: Path) -> None:
    cache = NodeCache(folder, MB)

    def fails() -> Array:
        raise OSError("the store is away")

    with pytest.raises(OSError, match="the store is away"):
        cache.array("0", fails)
    np.testing.assert_array_equal(cache.array("0", lambda: megabyte(0)), megabyte(0))


def test_an_array_larger_than_the_cache_is_given_and_evicts_nothing(folder: Path) -> None:
    cache = NodeCache(folder, MB)
    cache.array("0", lambda: megabyte(0))
    large = np.arange(2 * MB, dtype=np.uint8)
    np.testing.assert_array_equal(cache.array("large", lambda: large), large)
    assert [path.name for path in folder.glob("*.npy")] == ["0.npy"]


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A shared memory of one megabyte."""
    place = tmp_path / "full"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a tmpfs")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_shared_memory_that_others_have_filled_costs_a_note_and_no_sample(
    full: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cache = NodeCache(full, 100 * MB)
    (full / "of-another-program").write_bytes(bytes(MB // 2))
    for number in range(3):
        values = cache.array(str(number), lambda number=number: megabyte(number))
        np.testing.assert_array_equal(values, megabyte(number))
    small = cache.array("small", lambda: np.arange(10))
    assert small.tolist() == list(range(10))
    assert sorted(path.name for path in full.glob("*.npy")) == ["small.npy"]
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert "No space left on device" in said[0]
    assert "lower --cache-gb" in said[0]


def test_a_folder_that_is_gone_costs_a_note_and_no_sample(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cache = NodeCache(tmp_path / "removed by hand", 100 * MB)
    for number in range(3):
        values = cache.array(str(number), lambda number=number: megabyte(number))
        np.testing.assert_array_equal(values, megabyte(number))
    (said,) = capfd.readouterr().err.splitlines()
    assert "cannot be used (No such file or directory)" in said
    assert "read from the store each time" in said


def test_a_replaced_store_is_never_served_from_the_cache(phantom_store: Path, folder: Path) -> None:
    manifest = read_manifest(phantom_store, "93")
    case = sorted(manifest.cases)[0]
    plain = CaseReader(phantom_store, manifest.task.name)
    cache = NodeCache(folder, 100 * MB)
    before = plain.through(cache, manifest).array(case, "label")
    np.testing.assert_array_equal(
        before, read_array(phantom_store, manifest.task.name, case, "label")
    )
    manifest.cases[case].arrays["label"] = "0" * 64  # type: ignore[index]
    after = plain.through(cache, manifest)
    assert cache.find(after._key(case, "label", None)) is None


def test_a_box_is_cut_from_the_cache_and_read_in_part_where_it_does_not_fit(
    phantom_store: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(phantom_store, "91")
    task, case = manifest.task.name, sorted(manifest.cases)[0]
    box = (slice(2, 9), slice(0, 16), slice(5, 6))
    whole = read_array(phantom_store, task, case, "image")
    plain = CaseReader(phantom_store, task)
    reads = []

    def noted(*arguments: object) -> Array:
        reads.append(arguments)
        return read_array(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("mvl_dist.case_reader.read_array", noted)
    for capacity, times in ((100 * MB, 1), (whole.nbytes, 0)):
        reads.clear()
        reader = plain.through(NodeCache(folder / str(capacity), capacity), manifest)
        (folder / str(capacity)).mkdir()
        for _ in range(2):
            np.testing.assert_array_equal(reader.box(case, "image", box), whole[(..., *box)])
        assert len(reads) == times


def test_an_empty_array_is_kept_too(folder: Path) -> None:
    """As the foreground voxels of a case that has none."""
    cache = NodeCache(folder, MB)
    for load in (lambda: np.zeros((0, 4), np.uint16), _never):
        values = cache.array("none", load)
        assert (values.shape, values.dtype) == ((0, 4), np.uint16)


def test_only_the_channels_asked_for_are_kept(phantom_store: Path, folder: Path) -> None:
    manifest = read_manifest(phantom_store, "91")
    case = sorted(manifest.cases)[0]
    cache = NodeCache(folder, 100 * MB)
    reader = CaseReader(phantom_store, manifest.task.name).through(cache, manifest)
    whole = read_array(phantom_store, manifest.task.name, case, "image")
    np.testing.assert_array_equal(reader.array(case, "image", 1), whole[:1])
    assert cache.held() < whole.nbytes / 2
    box = (slice(1, 3), slice(0, 4), slice(5, 16))
    np.testing.assert_array_equal(reader.box(case, "image", box, 1), whole[(slice(1), *box)])
    np.testing.assert_array_equal(reader.array(case, "image"), whole)
