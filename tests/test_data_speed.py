"""`mvl doctor --data`."""

import re
import time
from pathlib import Path
from typing import Any

import pytest

from mvl_dist import case_reader, data_speed
from mvl_dist.data_speed import DataSpeed, measure
from mvl_dist.doctor import main
from mvl_dist.errors import UserError
from mvl_dist.node_cache import NodeCache
from mvl_dist.store import read_manifest


def test_it_weighs_the_files_that_a_case_consists_of(phantom_store: Path, tmp_path: Path) -> None:
    manifest = read_manifest(phantom_store, "91")
    speed = measure(phantom_store, manifest, 0, NodeCache(tmp_path, 10**9))
    folder = phantom_store / manifest.task.name / "cases"
    chunks = [*folder.glob("*/image/c/**/*"), *folder.glob("*/label/c/**/*")]
    on_disk = sum(path.stat().st_size for path in chunks if path.is_file())
    chunks_mb = on_disk / len(manifest.cases) / 1e6
    # The arrays' zarr.json files come on top, about a kilobyte each.
    assert chunks_mb < speed.mb_per_case < chunks_mb + 0.004


def test_each_part_is_charged_with_its_own_time(
    phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """60 ms more for a read array is decoding's, and no time of the cache's."""
    plain = case_reader.read_array

    def slow(work: Any, seconds: float) -> Any:
        def slowed(*arguments: Any) -> Any:
            time.sleep(seconds)
            return work(*arguments)

        return slowed

    monkeypatch.setattr(data_speed, "CASES", 3)
    monkeypatch.setattr(case_reader, "read_array", slow(plain, 0.06))
    cache = NodeCache(tmp_path, 10**9)
    speed = measure(phantom_store, read_manifest(phantom_store, "91"), 0, cache)
    assert speed.decode_ms >= 120  # two arrays
    # Four samples of at least 120 ms in a batch: the rate is that of samples, not of batches.
    assert speed.samples_per_s <= 1 / 0.12
    assert speed.cached_per_s > 1 / 0.12


@pytest.mark.parametrize(
    ("read_ms", "decode_ms", "workers", "samples_per_s", "advice"),
    [
        (9.0, 1.0, 4, 350.0, "node-local scratch"),
        (1.0, 9.0, 4, 350.0, "more --workers (there are 8 cores)"),
        (1.0, 9.0, 8, 700.0, "more cores"),
        # 8 workers of 10 ms a sample should give 800 a second.
        (1.0, 9.0, 8, 100.0, "other work on these cores"),
    ],
)
def test_the_advice_fits_the_largest_part(
    read_ms: float, decode_ms: float, workers: int, samples_per_s: float, advice: str
) -> None:
    speed = DataSpeed(read_ms, decode_ms, 1.0, workers, 0.1, samples_per_s, 1000.0)
    assert advice in speed.verdict(cores=8)


def test_doctor_reports_the_task_asked_for(
    phantom_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", "--store", str(phantom_store), "--task", "91", "--workers", "0"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    cases = len(read_manifest(phantom_store, "91").cases)
    assert said.startswith(f"Task91_PhantomTumour, {cases} cases of 16x16x16\n")
    rate = re.search(r"no workers +(\d+) samples/s", said)
    assert rate is not None
    assert int(rate[1]) > 0
    manifest = read_manifest(phantom_store, "91")
    # A label that shrank to next to nothing is kept without its zeros.
    decoded = cases * 16**3 * (2 * len(manifest.task.modalities) + 0.55)
    held = re.search(r"it wants ([\d.e-]+) GB, (\S+) holds 0 GB of at most ([\d.]+) GB", said)
    assert held is not None
    assert float(held[1]) == pytest.approx(decoded / 1e9, rel=0.01)
    assert not Path(held[2]).exists()  # a look leaves nothing behind


def test_a_choice_that_is_left_open_is_one_line(phantom_store: Path) -> None:
    with pytest.raises(UserError, match="choose with --task"):
        main(["--data", "--store", str(phantom_store)])


def test_a_flag_that_would_be_ignored_is_refused(phantom_store: Path) -> None:
    with pytest.raises(UserError, match="with --data only"):
        main(["--store", str(phantom_store), "--task", "91"])
