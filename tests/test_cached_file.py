"""Arrays of which the node's cache keeps no zeros."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mvl_dist.cached_file import PAGE
from mvl_dist.node_cache import NodeCache

MB = 2**20


def never() -> np.ndarray:
    raise AssertionError("loaded again")


def label(size: int = 64) -> np.ndarray:
    """As a label is: something in the midst of nothing."""
    values = np.zeros((size, size, size), np.uint8)
    values[24:40, 20:41, 22:43] = 3
    return values


@pytest.mark.parametrize(
    "values",
    [
        label(),
        np.zeros(5 * PAGE, np.uint8),
        np.zeros(3 * PAGE + 7, np.uint8),  # the last page is not whole
        np.r_[np.zeros(40 * PAGE, np.uint8), np.arange(9, dtype=np.uint8)],
        np.r_[np.ones(3, np.float16), np.zeros(20 * PAGE, np.float16)],
        np.full(9 * PAGE, -0.0, np.float16),  # a zero whose bits are not
        np.random.default_rng(0).normal(size=(3, 50, 60)).astype(np.float16),
        np.zeros((0, 4), np.uint16),
        label().transpose(2, 0, 1),
    ],
)
def test_what_is_kept_is_what_was_loaded(values: np.ndarray, folder: Path) -> None:
    NodeCache(folder, 10 * MB).array("a", lambda: values, holes=True)
    np.testing.assert_array_equal(np.load(folder / "a.npy").view(np.uint8), bits(values))
    cache = NodeCache(folder, 10 * MB)
    for out in (None, np.full(values.shape, 9, values.dtype), np.full(3, 9, values.dtype)):
        for _ in range(2):
            found = cache.array("a", never, out, holes=True)
            assert (found.shape, found.dtype) == (values.shape, values.dtype)
            np.testing.assert_array_equal(found.view(np.uint8), bits(values))


def bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(np.uint8)


def test_zeros_take_no_room_and_let_others_in(folder: Path) -> None:
    values = label(128)
    cache = NodeCache(folder, values.nbytes)
    for number in range(4):  # each would fill it
        cache.array(str(number), lambda: values, holes=True)
    assert len(list(folder.glob("*.npy"))) == 4
    assert 4 * 16 * PAGE < cache.held() < values.nbytes / 2
    assert cache.held() == sum(512 * path.stat().st_blocks for path in folder.glob("*.npy"))
    used = int((folder / "room").read_text())
    assert cache.held() <= used <= cache.held() + 4 * PAGE


def test_what_is_only_worth_keeping_without_its_zeros_is_loaded_each_time_if_it_has_few(
    folder: Path,
) -> None:
    loads = []

    def load() -> np.ndarray:
        loads.append(0)
        return np.arange(MB, dtype=np.uint8)

    cache = NodeCache(folder, 10 * MB)
    for number in (1, 2, 3):
        found = cache.array("a", load, holes=True, dense=False)
        np.testing.assert_array_equal(found, np.arange(MB, dtype=np.uint8))
        assert len(loads) == number
    assert [path.name for path in folder.glob("*a*")] == []
    cache.array("b", label, holes=True, dense=False)
    np.testing.assert_array_equal(cache.array("b", never, holes=True, dense=False), label())


@pytest.mark.parametrize("seed", range(8))
def test_nothing_that_has_holes_is_mapped(seed: int, folder: Path) -> None:
    rng = np.random.default_rng(seed)
    cache = NodeCache(folder, 100 * MB)
    mapped = 0
    for number in range(40):
        there = rng.random(int(rng.integers(1, 12))) < rng.random()
        values = np.repeat(there.astype(np.uint8), PAGE)[: rng.integers(1, len(there) * PAGE + 1)]
        cache.array(str(number), lambda values=values: values, holes=True)
        status = (folder / f"{number}.npy").stat()  # before a mapping could fill holes
        one, other = (cache.find(str(number), holes=True) for _ in range(2))
        np.testing.assert_array_equal(one, values)
        if one is other:
            assert status.st_blocks * 512 >= status.st_size
            mapped += 1
    assert 0 < mapped < 40


def test_a_label_in_the_same_rows_of_every_slice_has_holes_too(folder: Path) -> None:
    values = np.zeros((128, 128, 128), np.uint8)  # a slice is four pages of 4096 bytes
    values[:, :32] = 1
    NodeCache(folder, 10 * MB).array("a", lambda: values, holes=True, dense=False)
    np.testing.assert_array_equal(np.load(folder / "a.npy"), values)


def test_one_that_parts_are_cut_of_is_kept_whole_and_mapped(folder: Path) -> None:
    cache = NodeCache(folder, 10 * MB)
    cache.array("a", label)
    status = (folder / "a.npy").stat()
    assert status.st_blocks * 512 >= status.st_size
    assert cache.find("a") is cache.find("a")


def test_where_no_memory_is_left_what_has_holes_is_read_all_the_same(tmp_path: Path) -> None:
    """Touching a hole of a mapping would end the process by SIGBUS."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a tmpfs")
    try:
        values = label(128)  # 2 MB
        NodeCache(place, 100 * MB).array("a", lambda: values, holes=True)
        with pytest.raises(OSError, match="No space left"), (place / "other").open("wb") as file:
            file.write(bytes(MB))
        found = NodeCache(place, 100 * MB).array("a", never, holes=True)
        np.testing.assert_array_equal(found, values)
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_file_that_is_cut_short_is_loaded_again(folder: Path) -> None:
    cache = NodeCache(folder, 10 * MB)
    for _ in range(2):
        cache.array("a", label, holes=True)
    os.truncate(folder / "a.npy", 5 * PAGE)
    np.testing.assert_array_equal(cache.array("a", label, holes=True), label())
    np.testing.assert_array_equal(cache.array("a", never, holes=True), label())
