import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_prep import convert
from mvl_dist.errors import UserError
from mvl_dist.splits import held_out_cases
from mvl_dist.store import read_array, read_manifest, task_names
from tests.data_prep.tiny import (
    CASES,
    NAME,
    convert_tiny,
    make_tiny,
    scan,
    tree,
    write_nifti,
)


def arrays_of(store: Path, case: str) -> dict[str, str]:
    return dict(read_manifest(store, NAME).cases[case].arrays)


def test_the_store_holds_what_the_files_hold(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path)
    report, manifest = convert_tiny(folder, tmp_path / "s", grid=(6, 10, 8))
    assert (report.written, report.kept, report.skipped) == (8, 0, {})
    assert set(manifest.cases) == set(CASES)
    image, label = scan(0, ct=False)
    np.testing.assert_array_equal(read_array(tmp_path / "s", NAME, CASES[0], "label"), label.T)
    stored = read_array(tmp_path / "s", NAME, CASES[0], "image")[0].astype(np.float64)
    wanted = (image - image[image != 0].mean()) / image[image != 0].std()
    np.testing.assert_allclose(stored, wanted.T, atol=2e-3)
    info = manifest.cases[CASES[0]]
    assert (info.spacing_mm, info.native_shape) == ((2.0, 1.0, 1.0), (6, 10, 8))
    assert manifest.test_cases == held_out_cases(CASES, NAME, 0)


def test_a_second_run_writes_nothing(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path, "CT")
    _, first = convert_tiny(folder, tmp_path / "s")
    before = tree(tmp_path / "s")
    report, second = convert_tiny(folder, tmp_path / "s")
    assert (report.written, report.kept) == (0, 8)
    assert tree(tmp_path / "s") == before
    assert first == second


def test_the_largest_case_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_tiny(tmp_path)
    for case, depth in ((CASES[5], 30), (CASES[2], 20)):
        shape = (8, 10, depth)
        image = np.random.default_rng(0).normal(300, 30, shape).astype(np.int16)
        write_nifti(folder / "imagesTr" / f"{case}.nii.gz", image)
        write_nifti(folder / "labelsTr" / f"{case}.nii.gz", np.ones(shape, np.uint8))
    seen = []
    work = convert.convert
    monkeypatch.setattr(convert, "convert", lambda job: seen.append(job.pair.name) or work(job))
    convert_tiny(folder, tmp_path / "s")
    assert (seen[:2], sorted(seen)) == ([CASES[5], CASES[2]], list(CASES))


def test_a_touched_file_is_compared_by_its_checksum(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path)
    convert_tiny(folder, tmp_path / "s")
    before = tree(tmp_path / "s")
    os.utime(folder / "imagesTr" / f"{CASES[0]}.nii.gz", (1, 1))
    convert_tiny(folder, tmp_path / "s")
    assert tree(tmp_path / "s") == before


def test_only_what_changed_or_is_missing_is_converted_again(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path)
    _, first = convert_tiny(folder, tmp_path / "s")
    write_nifti(folder / "imagesTr" / f"{CASES[2]}.nii.gz", scan(99, False)[0])
    shutil.rmtree(tmp_path / "s" / NAME / "cases" / CASES[4])
    report, second = convert_tiny(folder, tmp_path / "s")
    assert (report.written, report.kept) == (2, 6)
    changed = {case for case in CASES if first.cases[case].arrays != second.cases[case].arrays}
    assert changed == {CASES[2]}
    assert first.checksum != second.checksum


def test_a_case_taken_off_the_list_leaves_the_store(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path)
    convert_tiny(folder, tmp_path / "s")
    dataset = json.loads((folder / "dataset.json").read_text())
    dataset["training"] = dataset["training"][:-1]
    (folder / "dataset.json").write_text(json.dumps(dataset))
    report, manifest = convert_tiny(folder, tmp_path / "s")
    assert set(manifest.cases) == set(CASES[:-1])
    assert not (tmp_path / "s" / NAME / "cases" / CASES[-1]).exists()
    assert any("numTraining 8" in note for note in report.notes)
    assert any(f"{CASES[-1]}.nii.gz" in note for note in report.notes)


@pytest.mark.parametrize(
    ("change", "named"), [({"grid": (9, 8, 8)}, "grid"), ({"split_seed": 5}, "split seed")]
)
def test_other_settings_are_refused_until_overwrite(
    tmp_path: Path, change: dict[str, object], named: str
) -> None:
    folder = make_tiny(tmp_path)
    _, first = convert_tiny(folder, tmp_path / "s")
    with pytest.raises(UserError, match=rf"other settings \({named} .*--overwrite"):
        convert_tiny(folder, tmp_path / "s", **change)
    assert read_manifest(tmp_path / "s", NAME) == first
    _, second = convert_tiny(folder, tmp_path / "s", **change, overwrite=True)
    assert second.checksum != first.checksum


def test_the_store_of_another_version_is_refused(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path)
    convert_tiny(folder, tmp_path / "s")
    path = tmp_path / "s" / NAME / "manifest.json"
    path.write_text(path.read_text().replace('"version": 2', '"version": 99', 1))
    with pytest.raises(UserError, match="store version 99"):
        convert_tiny(folder, tmp_path / "s")


def test_ct_statistics_come_from_the_training_part_only(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path, "CT")
    (held_out,) = held_out_cases(CASES, NAME, 0)
    others = [case for case in CASES if case != held_out]
    _, first = convert_tiny(folder, tmp_path / "a")

    path = folder / "imagesTr" / f"{held_out}.nii.gz"
    write_nifti(path, np.asarray(nib.load(path).dataobj) + np.int16(700))
    _, second = convert_tiny(folder, tmp_path / "b")
    assert second.normalisation == first.normalisation
    assert all(second.cases[case].arrays == first.cases[case].arrays for case in others)
    assert second.cases[held_out].arrays != first.cases[held_out].arrays

    path = folder / "imagesTr" / f"{others[0]}.nii.gz"
    write_nifti(path, np.asarray(nib.load(path).dataobj) + np.int16(700))
    _, third = convert_tiny(folder, tmp_path / "c")
    assert all(third.cases[c].arrays["image"] != first.cases[c].arrays["image"] for c in others)

    # The same change in a store that is already there: every case is brought to the new numbers.
    report, resumed = convert_tiny(folder, tmp_path / "a")
    assert (report.written, resumed.checksum) == (8, third.checksum)


def test_one_and_two_processes_give_the_same_store(
    phantom_root: Path, phantom_store: Path, tmp_path: Path
) -> None:
    folder = phantom_root / "Task93_PhantomLesion"
    grid = read_manifest(phantom_store, "93").grid
    _, manifest = convert_tiny(folder, tmp_path / "s", grid=grid, workers=2)
    assert manifest.checksum == read_manifest(phantom_store, "93").checksum


def test_the_command_converts_what_it_is_asked_for(
    phantom_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--msd-root", str(phantom_root), "--store", str(tmp_path / "s"), "--workers", "1"]
    assert convert.main([*argv, "--tasks", "93", "--grid", "4", "8", "8"]) == 0
    printed = capsys.readouterr().out
    assert "Task93_PhantomLesion: 8 cases written, 0 unchanged, 0 left out; read" in printed
    assert read_manifest(tmp_path / "s", "93").grid == (4, 8, 8)
    with pytest.raises(UserError, match="--grid 0 8 8"):
        convert.main([*argv, "--grid", "0", "8", "8"])
    with pytest.raises(UserError, match="unknown task 'Task77'"):
        convert.main([*argv, "--tasks", "Task77"])


@pytest.mark.msd
def test_real_hippocampi_convert_and_keep_their_volumes(msd_root: Path, tmp_path: Path) -> None:
    real = msd_root / "Task04_Hippocampus"
    folder = tmp_path / real.name
    folder.mkdir()
    dataset = json.loads((real / "dataset.json").read_text())
    dataset["training"] = dataset["training"][:8]
    (folder / "dataset.json").write_text(json.dumps(dataset))
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir()
        for entry in dataset["training"]:
            name = Path(entry["image"]).name
            (folder / part / name).write_bytes((real / part / name).read_bytes())
    _, manifest = convert_tiny(folder, tmp_path / "s", grid=(48, 48, 48))
    for case in manifest.cases:
        label, native = (
            read_array(tmp_path / "s", real.name, case, key) for key in ("label", "label_native")
        )
        for value in (1, 2):
            ratio = (label == value).mean() / (native == value).mean()
            assert abs(ratio - 1) < 1e-3


def test_a_deleted_case_comes_back_and_the_task_is_published_again(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path)
    _, first = convert_tiny(folder, tmp_path / "s")
    shutil.rmtree(tmp_path / "s" / NAME / "cases" / CASES[4])
    report, second = convert_tiny(folder, tmp_path / "s")
    assert (report.written, second.checksum) == (1, first.checksum)


def test_a_task_is_unpublished_while_its_cases_are_being_replaced(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path)
    convert_tiny(folder, tmp_path / "s")
    write_nifti(folder / "imagesTr" / f"{CASES[2]}.nii.gz", scan(99, False)[0])
    (folder / "imagesTr" / f"{CASES[5]}.nii.gz").write_bytes(b"no")
    with pytest.raises(UserError, match=f"case {CASES[5]}"):
        convert_tiny(folder, tmp_path / "s")
    assert task_names(tmp_path / "s") == ()
