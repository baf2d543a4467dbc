"""What of a case is read from the store each time, and what through the node's cache."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mvl_dist.case_reader import CaseReader
from mvl_dist.errors import UserError
from mvl_dist.node_cache import NodeCache
from mvl_dist.store import CaseArrays, create_task_group, read_array, write_case


def one_case_store(folder: Path, noise: bool, size: int = 16, scattered: bool = False) -> Path:
    """A store with a case `c` whose image is noise, or smooth; its label lies in one place, or in
    every slice."""
    image = np.random.default_rng(0).standard_normal((1, size, size, size)).astype(np.float16)
    image = image if noise else image.round()
    label = np.zeros((size, size, size), np.uint8)
    label[:: 1 if scattered else size, 4:9, 4:9] = 1
    create_task_group(folder, "T")
    write_case(folder, "T", "c", CaseArrays(image, label, label), {})
    return folder


def reader_of(store: Path, cache: Path, size: int = 16) -> CaseReader:
    cache.mkdir()
    manifest = SimpleNamespace(
        cases={"c": SimpleNamespace(arrays={"image": "a" * 64, "label": "b" * 64})},
        nbytes=lambda case, array: size**3 * {"image": 2, "label": 1}[array],
    )
    return CaseReader(store, "T").through(NodeCache(cache, 10**6), manifest)  # type: ignore[arg-type]


@pytest.mark.parametrize("scattered", [True, False])
@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("own", [True, False], ids=["this node's disk", "a network's"])
def test_what_the_page_cache_holds_as_good_as_decoded_is_not_kept_twice(
    own: bool, noise: bool, scattered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvl_dist.case_reader.on_own_disk", lambda path: own)
    store = one_case_store(tmp_path / "s", noise, 32, scattered)
    reader = reader_of(store, tmp_path / "cache", 32)
    for array in ("image", "label"):
        np.testing.assert_array_equal(reader.array("c", array), read_array(store, "T", "c", array))
    kept = {path.name.split(".")[2] for path in (tmp_path / "cache").glob("*.npy")}
    # The label's file is next to nothing; without its zeros the label is too.
    assert kept == {"image", "label"} - ({"image"} if own and noise else set()) - (
        {"label"} if own and scattered else set()
    )


def test_what_is_kept_needs_no_store_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvl_dist.case_reader.on_own_disk", lambda path: False)
    store = one_case_store(tmp_path / "s", noise=True)
    reader = reader_of(store, tmp_path / "cache")
    before = [reader.array("c", array).copy() for array in ("image", "label")]
    shutil.rmtree(store)
    for array, values in zip(("image", "label"), before, strict=True):
        np.testing.assert_array_equal(reader.array("c", array), values)


@pytest.fixture
def own_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvl_dist.case_reader.on_own_disk", lambda path: True)


@pytest.mark.usefixtures("own_disk")
@pytest.mark.parametrize("noise", [True, False])
def test_every_reading_gives_what_is_stored(noise: bool, tmp_path: Path) -> None:
    store = one_case_store(tmp_path / "s", noise)
    reader = reader_of(store, tmp_path / "cache")
    expected = {array: read_array(store, "T", "c", array) for array in ("image", "label")}
    for _ in range(4):
        for array, values in expected.items():
            np.testing.assert_array_equal(reader.array("c", array), values)
            place = np.empty_like(values)
            assert reader.array("c", array, out=place) is place
            np.testing.assert_array_equal(place, values)
            place.fill(9)


@pytest.mark.usefixtures("own_disk")
@pytest.mark.parametrize("noise", [True, False])
def test_what_is_written_into_an_array_reaches_neither_disk_nor_cache(
    noise: bool, tmp_path: Path
) -> None:
    store = one_case_store(tmp_path / "s", noise)
    reader = reader_of(store, tmp_path / "cache")
    files = lambda: {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}  # noqa: E731
    for _ in range(3):
        reader.array("c", "image")
    before = files()
    reader.array("c", "image").fill(9)
    assert files() == before


def test_an_array_of_another_shape_than_the_manifests_is_one_line(tmp_path: Path) -> None:
    """A case that was copied from a store of another grid."""
    reader = reader_of(one_case_store(tmp_path / "s", noise=True), tmp_path / "cache")
    place = np.empty((1, 8, 8, 8), np.float16)
    for channels in (None, 1):
        with pytest.raises(UserError, match=r"cases/c/image: .*\(1, 16, 16, 16\).*mvl verify") as e:
            reader.array("c", "image", channels, place)
        assert len(str(e.value).splitlines()) == 1


@pytest.mark.usefixtures("own_disk")
def test_a_case_without_a_right_to_read_it_is_one_line(tmp_path: Path) -> None:
    store = one_case_store(tmp_path / "s", noise=True)
    reader = reader_of(store, tmp_path / "cache")
    import_what_decodes = read_array(store, "T", "c", "image")
    assert import_what_decodes.size
    folder = store / "T/cases/c"
    folder.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read everything
    try:
        with pytest.raises(UserError, match=r"image: cannot be read whole \(PermissionError"):
            reader.array("c", "image")
    finally:
        os.seteuid(user)
        folder.chmod(0o700)


@pytest.mark.usefixtures("own_disk")
@pytest.mark.parametrize("readings", [0, 1])
def test_a_flipped_bit_is_found_by_the_first_reading_and_by_the_second(
    readings: int, tmp_path: Path
) -> None:
    store = one_case_store(tmp_path / "s", noise=True)
    reader = reader_of(store, tmp_path / "cache")
    file = store / "T/cases/c/image/c/0/0/0/0"
    for _ in range(readings):
        reader.array("c", "image")
    before, content = file.stat(), bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a disk's fault would leave it
    with pytest.raises(UserError, match=r"cases/c/image: cannot be read whole.*crc32c"):
        reader.array("c", "image")


@pytest.mark.usefixtures("own_disk")
def test_a_file_that_is_replaced_is_read_anew(tmp_path: Path) -> None:
    store = one_case_store(tmp_path / "s", noise=True)
    reader = reader_of(store, tmp_path / "cache")
    for _ in range(3):
        reader.array("c", "image")
    image = np.random.default_rng(7).standard_normal((1, 16, 16, 16)).astype(np.float16)
    label = np.zeros((16, 16, 16), np.uint8)
    write_case(store, "T", "c", CaseArrays(image, label, label), {})
    for _ in range(3):
        np.testing.assert_array_equal(reader.array("c", "image"), image)
