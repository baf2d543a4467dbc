"""`benchmarks/data.py` runs to its end, compares equal arrays only, and its ratios are right."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from benchmarks.data_path.source import Size

REPO = Path(__file__).resolve().parent.parent
PEERS = ("blosc2", "tensorstore", "webdataset")
absent = [name for name in PEERS if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(absent), reason=f"{', '.join(absent)} not installed: pip install -e '.[bench]'"
)
MAPPED = ("memmap", "memmap, torch's loader")
KEEPERS = ("ours", "MONAI CacheDataset")
STREAMS = ("MONAI PersistentDataset", "nnU-Net's blosc2", "WebDataset tar", "TensorStore")
WHOLE = {*MAPPED, *KEEPERS, *STREAMS, "ours, --cache-gb 0"}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    path = folder / "data.json"
    (folder / "work").mkdir()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.data", "--quick"),
            *("--json", path, "--work", folder / "work"),
        ],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == path.with_suffix(".txt").read_text().strip()
    assert list((folder / "work").iterdir()) == []
    return path


def test_every_competitor_has_its_figures_in_every_state(result: Path) -> None:
    found = json.loads(result.read_text())
    rows = {(row["name"], row["state"]): row for row in found["rows"]}
    for state in ("cold", "warm", "later"):
        names = {name for name, its_state in rows if its_state == state}
        assert names - {"paper's way"} == WHOLE
    for row in found["rows"]:
        assert row["samples_per_s"] > 0
        used = row["rounds"]["0"]
        assert row["samples_per_s"] == pytest.approx(used["samples"] / used["seconds"])
        assert row["cpu_ms_per_sample"] == pytest.approx(1000 * used["cpu_s"] / used["samples"])
    assert rows["ours", "cold"]["rounds"]["0"]["samples"] == 8
    # What is decoded once is not decoded again, and what is stored smaller is smaller.
    assert found["disk_bytes"]["ours"] < found["disk_bytes"]["memmap"]


def test_each_goal_is_the_ratio_of_its_two_rows(result: Path) -> None:
    found = json.loads(result.read_text())
    keys = (
        *("later_epochs_vs_memmap", "warm_first_epoch_vs_persistent"),
        *("cold_first_epoch_vs_persistent", "native_crops_vs_blosc2", "vs_paper_way"),
    )
    assert tuple(found["ratios"]) == keys

    def rate(name: str, state: str) -> Any:
        return next(
            row["samples_per_s"]
            for row in found["rows"]
            if (row["name"], row["state"]) == (name, state)
        )

    expected = {
        "later_epochs_vs_memmap": rate("ours", "later") / rate("memmap", "later"),
        "warm_first_epoch_vs_persistent": rate("ours", "warm")
        / rate("MONAI PersistentDataset", "warm"),
        "native_crops_vs_blosc2": rate("ours, --cache-gb 0", "crops")
        / rate("nnU-Net's blosc2", "crops"),
        "vs_paper_way": rate("ours", "later") / rate("paper's way", "warm"),
    }
    text = result.with_suffix(".txt").read_text()
    for key, value in expected.items():
        assert found["ratios"][key] == pytest.approx(value)
        assert found["goals"][key]["met"] == (value >= found["goals"][key]["goal"])
        assert key in text


def test_workers_read_what_the_process_itself_reads(tmp_path: Path) -> None:
    from benchmarks.data_path import making
    from benchmarks.data_path.competitors.ours import Ours
    from benchmarks.data_path.epochs import Epochs
    from benchmarks.data_path.rows import COLD, LATER, WARM, Result

    source = making.make(tmp_path, Size(8, 8, 8, (24, 24, 24), (24, 24, 24), 1, 2), None, 1)
    result = Result({})
    Epochs(result, [Ours(source, tmp_path)], 1, 0.01, 0, drop_all=False).round(0)
    used = {row.state: row.used[0] for row in result.rows}
    assert set(used) == {COLD, WARM, LATER}
    assert used[COLD].samples == used[WARM].samples == 8
    files = [
        path for path in Ours(source, tmp_path).files() if not {*source.starts} & {*path.parts}
    ]
    packed = sum(path.stat().st_size for path in files)
    # Whole pages are read; nothing was read that later epochs would need.
    assert used[COLD].disk_bytes >= packed
    assert used[WARM].disk_bytes == used[LATER].disk_bytes == 0


def test_ratios_pair_the_rounds(tmp_path: Path) -> None:
    """A machine that slows down between rounds slows both, and their ratio stays."""
    from benchmarks.data_path.rows import LATER, Result
    from benchmarks.data_path.timing import Used

    result = Result({})
    for number, seconds in enumerate((1.0, 10.0, 3.0)):
        result.row("ours", LATER, 2).used[number] = Used(100, seconds, 0.0, 0)
        result.row("memmap", LATER, 2).used[number] = Used(80, seconds, 0.0, 0)
        result.row("ours", LATER, 1).used[number] = Used(50, seconds, 0.0, 0)
        result.row("memmap", LATER, 1).used[number] = Used(100, seconds, 0.0, 0)
    result.write(tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())
    by_workers = {r["workers"]: r for r in found["goals"]["later_epochs_vs_memmap"]["by_workers"]}
    assert by_workers[2]["low"] == by_workers[2]["high"] == pytest.approx(1.25)
    # The number is that of the less favourable number of workers.
    assert found["ratios"]["later_epochs_vs_memmap"] == pytest.approx(0.5)
    assert found["goals"]["later_epochs_vs_memmap"]["met"] is False
    assert found["ratios"]["vs_paper_way"] is None
    assert found["goals"]["vs_paper_way"]["met"] is False


def test_a_competitor_that_delivers_something_else_ends_the_run(
    tmp_path: Path,
) -> None:
    from benchmarks.data_path import making
    from benchmarks.data_path.competitors.memmap import Memmap
    from benchmarks.data_path.epochs import check

    source = making.make(tmp_path, Size(8, 8, 8, (24, 24, 24), (24, 24, 24), 1, 2), None, 1)
    folder = tmp_path / "memmap"
    folder.mkdir()
    memmap = Memmap(source, folder)
    memmap.build()
    check([memmap])
    path = folder / f"{source.cases[2]}.image.npy"
    image = np.load(path)
    image[0, 3, 3, 3] += 1
    np.save(path, image)
    with pytest.raises(SystemExit, match=f"memmap: {source.cases[2]} differs"):
        check([memmap])


def test_cold_files_are_not_in_the_page_cache(tmp_path: Path) -> None:
    from benchmarks.data_path import disk

    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    if next(mounts[at] for at in tmp_path.parents if at in mounts) in ("tmpfs", "ramfs"):
        pytest.skip(f"{tmp_path} lies in memory, which nothing can be dropped from")
    files = [tmp_path / name for name in "ab"]
    for path in files:
        path.write_bytes(bytes(3_000_000))
    assert disk.cached_share(files) == 1
    disk.forget(files[:1], everything=False)
    assert disk.cached_share(files) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("shape", "patch", "itemsize", "blocks", "chunks"),
    [
        # What nnunetv2 2.8.1's comp_blosc2_params returned.
        ((1, 128, 128, 128), (128, 128, 128), 2, (1, 64, 32, 32), (1, 128, 128, 128)),
        ((1, 160, 192, 192), (96, 96, 96), 2, (1, 64, 32, 32), (1, 144, 144, 144)),
        ((1, 160, 192, 192), (96, 96, 96), 1, (1, 64, 64, 32), (1, 144, 144, 144)),
        ((1, 40, 512, 512), (28, 256, 256), 2, (1, 8, 128, 64), (1, 32, 384, 256)),
        ((4, 155, 240, 240), (96, 96, 96), 4, (1, 32, 32, 32), (1, 96, 128, 128)),
    ],
)
def test_chunks_are_nnunets(
    shape: tuple[int, ...],
    patch: tuple[int, ...],
    itemsize: int,
    blocks: tuple[int, ...],
    chunks: tuple[int, ...],
) -> None:
    from benchmarks.data_path.competitors.blosc2_store import chunking

    assert chunking(shape, patch, itemsize) == (blocks, chunks)
