import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep import verify
from mvl_dist.errors import UserError
from mvl_dist.store import read_manifest, write_manifest
from tests.data_prep.tiny import CASES, NAME, convert_tiny, make_tiny


@pytest.fixture
def store(tmp_path: Path) -> Path:
    convert_tiny(make_tiny(tmp_path / "msd"), tmp_path / "store")
    return tmp_path / "store"


def problems(store: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    status = verify.main(["--store", str(store), "--workers", "1"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "arrays read" not in line]
    assert status == bool(lines)
    return lines


def test_a_sound_store_has_no_problem(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert problems(store, capsys) == []


@pytest.mark.parametrize("array", ["image", "label", "label_native"])
def test_a_flipped_bit_is_found_and_named(
    store: Path, capsys: pytest.CaptureFixture[str], array: str
) -> None:
    folder = store / NAME / "cases" / CASES[2] / array / "c"
    (chunk,) = (path for path in folder.rglob("*") if path.is_file())
    content = bytearray(chunk.read_bytes())
    content[-9] ^= 16
    chunk.write_bytes(bytes(content))
    (line,) = problems(store, capsys)
    assert f"case {CASES[2]}: {array}" in line


def test_a_case_put_in_the_place_of_another_is_found(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = store / NAME / "cases"
    shutil.rmtree(cases / CASES[0])
    shutil.copytree(cases / CASES[1], cases / CASES[0])
    lines = problems(store, capsys)
    assert len(lines) == 1  # the labels of all tiny cases are alike, the image is not
    assert f"case {CASES[0]}: image: its checksum differs" in lines[0]


def test_a_lost_case_and_a_wrong_shape_are_found(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(store / NAME / "cases" / CASES[0])
    manifest = read_manifest(store, NAME)
    wrong = replace(manifest.cases[CASES[1]], native_shape=(6, 10, 9))
    write_manifest(store, replace(manifest, cases={**manifest.cases, CASES[1]: wrong}))
    lines = problems(store, capsys)
    assert [CASES[0] in line for line in lines] == [True] * 3 + [False]
    assert "is uint8 (6, 10, 8), should be uint8 (6, 10, 9)" in lines[3]


def test_what_does_not_belong_there_is_reported(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = store / NAME / "cases"
    shutil.copytree(cases / CASES[0], cases / "stranger")
    (cases / ".partial-x-1").mkdir()
    (store / NAME / "notes.txt").touch()
    found = "\n".join(problems(store, capsys))
    assert "case stranger is not in the manifest" in found
    assert ".partial-x-1 was left by a stopped conversion" in found
    assert "notes.txt does not belong there" in found


def test_a_task_without_manifest_is_a_problem_and_no_store_an_error(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (store / NAME / "manifest.json").unlink()
    (line,) = problems(store, capsys)
    assert "conversion was not completed" in line
    with pytest.raises(UserError, match="no store at"):
        verify.main(["--store", str(tmp_path / "none")])


def test_one_task_can_be_asked_for(phantom_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main(["--store", str(phantom_store), "--tasks", "93", "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "Task93_PhantomLesion: 8 cases" in printed
    assert "Task91" not in printed
