"""`mvl doctor --data`."""

from pathlib import Path

import pytest

from mvl_dist.data_speed import DataSpeed, measure
from mvl_dist.doctor import main
from mvl_dist.errors import UserError
from mvl_dist.store import read_manifest


def test_it_weighs_the_files_that_a_case_consists_of(phantom_store: Path) -> None:
    manifest = read_manifest(phantom_store, "91")
    speed = measure(phantom_store, manifest, workers=0)
    folder = phantom_store / manifest.task.name / "cases"
    chunks = [*folder.glob("*/image/c/**/*"), *folder.glob("*/label/c/**/*")]
    on_disk = sum(path.stat().st_size for path in chunks if path.is_file())
    chunks_mb = on_disk / len(manifest.cases) / 1e6
    # The arrays' zarr.json files come on top, about a kilobyte each.
    assert chunks_mb < speed.mb_per_case < chunks_mb + 0.004
    assert min(speed.read_ms, speed.decode_ms, speed.samples_per_s) > 0


@pytest.mark.parametrize(
    ("read_ms", "decode_ms", "workers", "advice"),
    [
        (9.0, 1.0, 4, "node-local scratch"),
        (1.0, 9.0, 4, "more --workers (there are 8 cores)"),
        (1.0, 9.0, 8, "more cores"),
    ],
)
def test_the_advice_fits_the_largest_part(
    read_ms: float, decode_ms: float, workers: int, advice: str
) -> None:
    speed = DataSpeed(read_ms, decode_ms, 0.5, 1.0, workers, 0.1, 100.0)
    assert advice in speed.verdict(cores=8)


def test_doctor_prints_it(phantom_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", "--store", str(phantom_store), "--task", "91", "--workers", "0"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "ms decoding" in said
    assert "samples/s" in said
    assert "bounded by" in said


def test_a_choice_that_is_left_open_is_one_line(phantom_store: Path) -> None:
    with pytest.raises(UserError, match="choose with --task"):
        main(["--data", "--store", str(phantom_store)])
