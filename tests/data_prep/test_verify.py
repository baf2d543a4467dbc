import json
import random
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr

from data_prep import verify
from mvl_dist.errors import UserError
from mvl_dist.store import SEAL, case_text, read_manifest, seal_holds, write_manifest
from tests.data_prep.tiny import CASES, NAME, convert_tiny, make_tiny


@pytest.fixture
def store(tmp_path: Path) -> Path:
    convert_tiny(make_tiny(tmp_path / "msd", "CT"), tmp_path / "store")
    return tmp_path / "store"


def problems(store: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    status = verify.main(["--store", str(store), "--workers", "1"])
    lines = [line for line in capsys.readouterr().out.splitlines() if " MB read" not in line]
    assert status == bool(lines)
    return lines


def test_a_sound_store_has_no_problem(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert problems(store, capsys) == []


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content))


def reseal(case: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a case's zarr.json and seal it anew, as if it had been written so."""
    attributes = json.loads((case / "zarr.json").read_bytes())["attributes"]
    del attributes[SEAL]
    change(attributes)
    (case / "zarr.json").write_text(case_text(attributes))


def test_files_are_summed_as_zlib_does(store: Path) -> None:
    case = store / NAME / "cases" / CASES[0]
    files = json.loads((case / "zarr.json").read_bytes())["attributes"]["files"]
    found = {
        str(path.relative_to(case)): {
            "bytes": path.stat().st_size,
            "crc32": f"{zlib.crc32(path.read_bytes()):08x}",
        }
        for path in case.rglob("*")
        if path.is_file() and path.name != "zarr.json"
    }
    assert len(found) == 6
    assert {
        f"{array}/{name}": s for array, sums in files.items() for name, s in sums.items()
    } == found


def test_a_sound_store_is_decoded_only_where_that_is_asked_for(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main(["--store", str(store), "--workers", "1"]) == 0
    assert "decoded" not in capsys.readouterr().out
    case = store / NAME / "cases" / CASES[3]
    label = case / "label_native" / "c" / "0" / "0" / "0"
    shutil.copy(store / NAME / "cases" / CASES[3] / "label" / "c" / "0" / "0" / "0", label)
    # As if it had been encoded wrongly: the file is the one that was written.
    sums = {"bytes": label.stat().st_size, "crc32": f"{zlib.crc32(label.read_bytes()):08x}"}
    reseal(case, lambda attributes: attributes["files"]["label_native"].update({"c/0/0/0": sums}))
    assert problems(store, capsys) == []
    assert verify.main(["--store", str(store), "--workers", "1", "--decode"]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if CASES[3] in line]
    assert "label_native: " in line


def test_a_case_without_sums_of_its_files_is_decoded(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = store / NAME / "cases" / CASES[0]
    reseal(case, lambda attributes: attributes.pop("files"))
    assert verify.main(["--store", str(store), "--workers", "1"]) == 0
    assert " MB decoded: all as it was written" in capsys.readouterr().out
    flip(case / "image" / "c" / "0" / "0" / "0" / "0", random.Random(4))
    (line,) = problems(store, capsys)
    assert f"case {CASES[0]}: image:" in line


def test_bytes_behind_a_chunk_and_a_file_of_another_case_are_found(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = store / NAME / "cases"
    with (cases / CASES[0] / "foreground_spaced" / "c.0.0").open("ab") as file:
        file.write(b"\0")
    shard = Path("image_spaced") / "c.0.0.0.0"
    shutil.copy(cases / CASES[1] / shard, cases / CASES[2] / shard)
    first, second = problems(store, capsys)
    assert f"case {CASES[0]}: foreground_spaced:" in first
    assert f"case {CASES[2]}: image_spaced: its checksum differs" in second


def files_of_a_case(store: Path) -> list[str]:
    folder = store / NAME / "cases" / CASES[0]
    return [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]


def test_a_flipped_bit_in_any_file_of_a_case_is_found_and_named(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = files_of_a_case(store)
    assert len(files) == 1 + 6 * 2
    rng = random.Random(0)
    for file in files:
        array = file.split("/")[0]
        sound = {}
        for case in CASES:  # another bit in each
            path = store / NAME / "cases" / case / file
            sound[path] = path.read_bytes()
            flip(path, rng)
        found = problems(store, capsys)
        for case in CASES:
            assert any(f"case {case}: {array}:" in line for line in found), (case, file)
        assert len(found) == len(CASES)
        for path, content in sound.items():
            path.write_bytes(content)
    assert problems(store, capsys) == []


def test_a_flipped_bit_in_any_other_file_is_found_and_named(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    statistics = [f"{NAME}/.statistics/{case}.json" for case in CASES]
    groups = ["zarr.json", f"{NAME}/zarr.json", f"{NAME}/cases/zarr.json"]
    files = [*statistics, *groups, f"{NAME}/manifest.json"]
    everything = {str(path.relative_to(store)) for path in store.rglob("*") if path.is_file()}
    assert {name for name in everything if not name.startswith(f"{NAME}/cases/tiny")} == set(files)
    rng = random.Random(1)
    sound = {file: (store / file).read_bytes() for file in files}
    for _ in range(3):
        for file in files[:-1]:
            flip(store / file, rng)
        lines = problems(store, capsys)
        assert len(lines) == len(files) - 1
        assert all(any(str(store / file) in line for line in lines) for file in files[:-1])
        for file, content in sound.items():
            (store / file).write_bytes(content)
    manifest, content = store / files[-1], sound[files[-1]]
    at = content.index(b"2.0")  # the slices' distance; the flip makes it 3.0
    for place, bit in ((at, 1), *((rng.randrange(len(content)), 8) for _ in range(3))):
        damaged = bytearray(content)
        damaged[place] ^= bit
        manifest.write_bytes(bytes(damaged))
        (line,) = problems(store, capsys)
        assert str(manifest) in line


def test_every_bit_of_a_manifest_and_of_a_case_counts(store: Path) -> None:
    for path in (store / NAME / "manifest.json", store / NAME / "cases" / CASES[0] / "zarr.json"):
        content = path.read_bytes()
        holder = json.loads(content)
        seal = holder.get(SEAL) or holder["attributes"][SEAL]
        assert seal_holds(content, seal)
        for place in range(0, len(content), 3):
            damaged = bytearray(content)
            damaged[place] ^= 1 << place % 8
            try:
                raw = json.loads(bytes(damaged))
            except ValueError:
                continue
            assert not seal_holds(
                bytes(damaged), raw.get(SEAL, raw.get("attributes", {}).get(SEAL))
            )


def test_a_lost_shard_or_chunk_of_it_is_found(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = store / NAME / "cases"
    (cases / CASES[0] / "label_spaced" / "c.0.0.0").unlink()
    # An index, closed by a right crc32c, that lists no chunk: a reader would take it for zeros.
    nothing = np.full(2, 2**64 - 1, "<u8").tobytes()
    shard = nothing + google_crc32c.value(nothing).to_bytes(4, "little")
    (cases / CASES[1] / "image_spaced" / "c.0.0.0.0").write_bytes(shard)
    assert not zarr.open_array(cases / CASES[1] / "image_spaced", mode="r")[...].any()
    first, second = problems(store, capsys)
    assert f"case {CASES[0]}: label_spaced:" in first
    assert f"case {CASES[1]}: image_spaced:" in second
    assert "lacks a chunk" in second


def test_the_same_conversion_mends_what_was_damaged(
    tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = read_manifest(store, NAME)
    rng = random.Random(2)
    flip(store / NAME / "cases" / CASES[2] / "zarr.json", rng)
    flip(store / NAME / ".statistics" / f"{CASES[4]}.json", rng)
    (store / NAME / "zarr.json").unlink()
    (store / NAME / "manifest.json").unlink()
    report, manifest = convert_tiny(tmp_path / "msd" / NAME, store)
    assert (report.written, report.kept, manifest) == (1, 7, sound)
    assert problems(store, capsys) == []


def test_a_case_put_in_the_place_of_another_is_found(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = store / NAME / "cases"
    shutil.rmtree(cases / CASES[0])
    shutil.copytree(cases / CASES[1], cases / CASES[0])
    lines = problems(store, capsys)
    # The labels of all tiny cases are alike, the image is not.
    wrong = ["image: its checksum", "image_spaced: its checksum", "zarr.json: differs from the"]
    assert [f"case {CASES[0]}: {what}" in line for what, line in zip(wrong, lines, strict=True)]


def test_a_lost_case_and_a_wrong_shape_are_found(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(store / NAME / "cases" / CASES[0])
    manifest = read_manifest(store, NAME)
    wrong = replace(manifest.cases[CASES[1]], native_shape=(6, 10, 9))
    write_manifest(store, replace(manifest, cases={**manifest.cases, CASES[1]: wrong}))
    lines = problems(store, capsys)
    assert [CASES[0] in line for line in lines] == [True, False, False]
    assert "missing" in lines[0]
    assert "is uint8 (6, 10, 8), should be uint8 (6, 10, 9)" in lines[1]
    assert "zarr.json: differs from the manifest" in lines[2]


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
