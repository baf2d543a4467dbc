"""What of a case is read from the store each time, and what through the node's cache."""

import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.data_path.disk import cached_share, forget
from mvl_dist.case_reader import CaseReader
from mvl_dist.node_cache import NodeCache
from mvl_dist.store import CaseArrays, create_task_group, read_array, write_case


def one_case_store(folder: Path, noise: bool) -> Path:
    """A store with a case `c` whose image is noise, or smooth."""
    image = np.random.default_rng(0).standard_normal((1, 16, 16, 16)).astype(np.float16)
    image = image if noise else image.round()
    label = np.zeros((16, 16, 16), np.uint8)
    label[4:9, 4:9, 4:9] = 1
    create_task_group(folder, "T")
    write_case(folder, "T", "c", CaseArrays(image, label, label), {})
    return folder


def reader_of(store: Path, cache: Path) -> CaseReader:
    cache.mkdir()
    manifest = SimpleNamespace(
        cases={"c": SimpleNamespace(arrays={"image": "a" * 64, "label": "b" * 64})},
        nbytes=lambda case, array: 16**3 * {"image": 2, "label": 1}[array],
    )
    return CaseReader(store, "T").through(NodeCache(cache, 10**6), manifest)  # type: ignore[arg-type]


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("own", [True, False], ids=["this node's disk", "a network's"])
def test_what_the_page_cache_holds_decoded_is_not_kept_twice(
    own: bool, noise: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvl_dist.case_reader.on_own_disk", lambda path: own)
    store = one_case_store(tmp_path / "s", noise)
    reader = reader_of(store, tmp_path / "cache")
    for array in ("image", "label"):
        np.testing.assert_array_equal(reader.array("c", array), read_array(store, "T", "c", array))
    kept = {path.name.split(".")[2] for path in (tmp_path / "cache").glob("*.npy")}
    assert kept == ({"image", "label"} if not own else set() if noise else {"image"})


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


def test_a_disk_reads_meanwhile_what_will_be_asked_for(tmp_path: Path) -> None:
    store = one_case_store(tmp_path / "s", noise=True)
    shutil.rmtree(store / "T/cases/c/label")  # whoever reads it will say so
    file = store / "T/cases/c/image/c/0/0/0/0"
    if cached_share([file]) < 1:
        pytest.skip("files are not kept in a page cache here")
    forget([file], everything=False)
    assert cached_share([file]) == 0
    reader_of(store, tmp_path / "cache").ahead(["c"], {"image": None, "label": None})
    until = time.monotonic() + 10
    while cached_share([file]) < 1 and time.monotonic() < until:
        time.sleep(0.01)
    assert cached_share([file]) == 1
