import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_prep import migrate, verify
from mvl_dist.errors import UserError
from mvl_dist.files import PARTIAL
from mvl_dist.store import ARRAYS, read_array, read_case_attributes, read_manifest
from tests.data_prep.older import CHECKSUMS, GRID, version_1_store
from tests.data_prep.tiny import CASES, NAME, convert_tiny, make_tiny, scan, tree

both = pytest.mark.parametrize("modality", ["MRI", "CT"])


def contents(store: Path) -> dict[str, str]:
    return {name: hashlib.sha256((store / name).read_bytes()).hexdigest() for name in tree(store)}


@both
def test_a_store_of_version_1_reads_and_keeps_its_identity(tmp_path: Path, modality: str) -> None:
    store = version_1_store(tmp_path, modality)
    manifest = read_manifest(store, NAME)
    assert (manifest.version, manifest.spacing_mm) == (1, None)
    assert manifest.checksum == CHECKSUMS[modality]
    assert {info.spaced_shape for info in manifest.cases.values()} == {None}
    native = read_array(store, NAME, CASES[2], "label_native")
    np.testing.assert_array_equal(native, scan(2, modality == "CT")[1].T)
    assert verify.main(["--store", str(store), "--workers", "1"]) == 0


@both
def test_a_conversion_of_today_has_the_identity_of_version_1(tmp_path: Path, modality: str) -> None:
    folder = make_tiny(tmp_path, modality)
    for spacing in ("none", "auto"):
        _, manifest = convert_tiny(folder, tmp_path / spacing, grid=GRID, spacing=spacing)
        assert (manifest.version, manifest.checksum) == (2, CHECKSUMS[modality])


@both
def test_a_migrated_store_is_sound_and_a_conversion_leaves_it_alone(
    tmp_path: Path, modality: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = version_1_store(tmp_path, modality)
    before = contents(store)
    assert migrate.main(["--store", str(store)]) == 0
    assert "8 cases brought from store version 1 to 2" in capsys.readouterr().out
    manifest = read_manifest(store, NAME)
    assert (manifest.version, manifest.checksum) == (2, CHECKSUMS[modality])
    after = contents(store)
    chunks = [name for name in before if not name.endswith(".json")]
    assert len(chunks) == 8 * len(ARRAYS)
    assert all(after[name] == before[name] for name in chunks)
    assert verify.main(["--store", str(store), "--workers", "1"]) == 0

    report, again = convert_tiny(make_tiny(tmp_path, modality), store, grid=GRID, spacing="none")
    assert (report.written, report.kept, again) == (0, 8, manifest)
    # What a conversion of today writes, but for the files' times.
    convert_tiny(tmp_path / NAME, tmp_path / "fresh", grid=GRID, spacing="none")
    one = read_case_attributes(store, NAME, CASES[1])
    other = read_case_attributes(tmp_path / "fresh", NAME, CASES[1])
    assert one is not None
    assert other is not None
    # Checksums of the chunks' files would hide that one was damaged before.
    assert one.keys() == other.keys() - {"files"}
    assert {key: one[key] for key in ("settings", "normalisation", "arrays", "metadata")} == {
        key: other[key] for key in ("settings", "normalisation", "arrays", "metadata")
    }

    assert migrate.main(["--store", str(store), "--tasks", NAME]) == 0
    assert "is of store version 2 already" in capsys.readouterr().out


def test_arrays_at_the_tasks_spacing_come_to_a_migrated_store(tmp_path: Path) -> None:
    store = version_1_store(tmp_path, "CT")
    folder = make_tiny(tmp_path, "CT")
    with pytest.raises(UserError, match=r"is of store version 1.*mvl migrate --store"):
        convert_tiny(folder, store, grid=GRID)
    migrate.main(["--store", str(store)])
    report, manifest = convert_tiny(folder, store, grid=GRID)
    assert (report.written, manifest.checksum) == (8, CHECKSUMS["CT"])
    assert manifest.spacing_mm == (2.0, 1.0, 1.0)
    assert read_array(store, NAME, CASES[0], "image_spaced").shape == (1, 6, 10, 8)


def test_whatever_stops_it_leaves_a_store_that_reads_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = version_1_store(tmp_path / "whole", "CT")
    migrate.migrate_task(whole, NAME)
    write = migrate.write_text_atomically
    for stop in (0, 3, 8, 15):  # of 8 cases and 8 histograms; the manifest comes after them
        store = version_1_store(tmp_path / str(stop), "CT")
        left = iter(range(stop))

        def killed(path: Path, text: str, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                path.with_name(f"{PARTIAL}{path.name}-0").write_text(text[:99])
                raise KeyboardInterrupt
            write(path, text)

        monkeypatch.setattr(migrate, "write_text_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            migrate.migrate_task(store, NAME)
        manifest = read_manifest(store, NAME)
        assert (manifest.version, manifest.checksum) == (1, CHECKSUMS["CT"])
        np.testing.assert_array_equal(
            read_array(store, NAME, CASES[0], "label_native"), scan(0, True)[1].T
        )
        monkeypatch.setattr(migrate, "write_text_atomically", write)
        migrate.migrate_task(store, NAME)
        assert contents(store) == contents(whole)


def test_what_was_damaged_before_is_refused_not_sealed(tmp_path: Path) -> None:
    store = version_1_store(tmp_path, "MRI")
    path = store / NAME / "cases" / CASES[5] / "zarr.json"
    raw = json.loads(path.read_text())
    raw["attributes"]["info"]["affine"][0][0] += 0.5
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match=rf"{CASES[5]}: missing, damaged, or not as the manifest"):
        migrate.main(["--store", str(store)])
    assert read_manifest(store, NAME).version == 1


def test_a_store_of_a_later_version_or_none_is_refused_by_the_command(tmp_path: Path) -> None:
    store = version_1_store(tmp_path, "MRI")
    manifest = store / NAME / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 99', 1))
    done = subprocess.run(
        [sys.executable, "-m", "mvl_dist.cli", "migrate", "--store", str(store)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "store version 99, this program reads up to 2" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    with pytest.raises(UserError, match="no store at"):
        migrate.main(["--store", str(tmp_path / "none")])
