import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from mvl_dist import store
from mvl_dist.errors import UserError


@pytest.fixture
def arrays() -> store.CaseArrays:
    rng = np.random.default_rng(0)
    return store.CaseArrays(
        image=rng.standard_normal((2, 8, 9, 10)).astype(np.float16),
        label=np.zeros((8, 9, 10), np.uint8),
        label_native=rng.integers(0, 3, (5, 6, 7)).astype(np.uint8),
    )


def test_a_case_reads_back_as_written_and_by_zarr_itself(
    tmp_path: Path, arrays: store.CaseArrays
) -> None:
    store.create_task_group(tmp_path / "s", "T")
    store.write_case(tmp_path / "s", "T", "c", arrays, {"a": 1})
    for key in store.ARRAYS:
        expected = getattr(arrays, key)
        np.testing.assert_array_equal(store.read_array(tmp_path / "s", "T", "c", key), expected)
        independent = zarr.open_group(tmp_path / "s", mode="r")[f"T/cases/c/{key}"]
        np.testing.assert_array_equal(independent[...], expected)
        assert independent.metadata.zarr_format == 3
        assert independent.chunks == independent.shape  # one chunk a case and array


def test_a_lost_all_background_label_does_not_read_as_empty(
    tmp_path: Path, arrays: store.CaseArrays
) -> None:
    store.create_task_group(tmp_path, "T")
    store.write_case(tmp_path, "T", "c", arrays, {})
    shutil.rmtree(tmp_path / "T/cases/c/label/c")
    with pytest.raises(UserError, match="label: cannot be read whole"):
        store.read_array(tmp_path, "T", "c", "label")


def test_a_flipped_bit_is_found_when_it_is_read(tmp_path: Path, arrays: store.CaseArrays) -> None:
    store.create_task_group(tmp_path, "T")
    store.write_case(tmp_path, "T", "c", arrays, {})
    (chunk,) = (path for path in (tmp_path / "T/cases/c/image/c").rglob("*") if path.is_file())
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 4
    chunk.write_bytes(bytes(content))
    with pytest.raises(UserError, match="T/cases/c/image"):
        store.read_array(tmp_path, "T", "c", "image")


@pytest.mark.parametrize(("channels", "parts"), [(1, 3), (2, 1)])
def test_the_parts_of_an_array_are_its_bytes_in_order_to_a_damaged_one(
    tmp_path: Path, arrays: store.CaseArrays, channels: int, parts: int
) -> None:
    rng = np.random.default_rng(0)
    spaced = store.SpacedArrays(
        rng.standard_normal((channels, 130, 5, 6)).astype(np.float16),
        rng.integers(0, 3, (130, 5, 6)).astype(np.uint8),
        np.zeros((0, 4), np.uint16),
    )
    store.create_task_group(tmp_path, "T")
    case = dataclasses.replace(arrays, spaced=spaced)
    store.write_case(tmp_path, "T", "c", case, {})
    for key, values in case.named().items():
        shape, dtype, read = store.read_parts(tmp_path, "T", "c", key)
        assert (shape, dtype) == (values.shape, values.dtype.name)
        assert b"".join(part.tobytes() for part in read) == values.tobytes()
    _, _, read = store.read_parts(tmp_path, "T", "c", "image_spaced")
    assert len(list(read)) == parts

    (shard,) = (tmp_path / "T/cases/c/image_spaced").glob("c*")
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1  # before the index of three chunks: in the last of them
    shard.write_bytes(content)
    got = []
    with pytest.raises(UserError, match="image_spaced: cannot be read whole"):
        got.extend(store.read_parts(tmp_path, "T", "c", "image_spaced")[2])
    assert len(got) == parts - 1


def test_a_manifest_reads_back_as_it_was(phantom_store: Path) -> None:
    manifest = store.read_manifest(phantom_store, "91")
    again = phantom_store.parent / "again"
    store.create_task_group(again, manifest.task.name)
    store.write_manifest(again, manifest)
    assert store.read_manifest(again, "91") == manifest
    assert store.read_manifest(again, "91").checksum == manifest.checksum


def test_how_a_training_changes_the_data_is_no_part_of_their_checksum(phantom_store: Path) -> None:
    """The literal is what a store of this manifest had before tasks had mirror axes."""
    manifest = store.read_manifest(phantom_store, "91")
    bare = dataclasses.replace(manifest, version=1, cases={}, test_cases=())
    mirrored = dataclasses.replace(bare, task=dataclasses.replace(bare.task, mirror_axes=("W",)))
    assert mirrored.checksum == bare.checksum == "93c0be3713b03192"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 99}, "store version 99, this program reads up to 2.*mvl convert"),
        ({"cases": 3}, "not a manifest"),
    ],
)
def test_a_store_of_another_version_or_make_is_refused(
    phantom_store: Path, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    copy = tmp_path / "store"
    name = "Task91_PhantomTumour"
    (copy / name).mkdir(parents=True)
    manifest = json.loads((phantom_store / name / store.MANIFEST).read_text())
    (copy / name / store.MANIFEST).write_text(json.dumps({**manifest, **change}))
    with pytest.raises(UserError, match=reason):
        store.read_manifest(copy, name)


def test_a_missing_store_or_task_says_which_command_makes_it(
    phantom_store: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match=r"mvl convert --msd-root DIR --store .*none --tasks Task01"
    ):
        store.read_manifest(tmp_path / "none", "Task01")
    with pytest.raises(UserError, match=r"Task01_BrainTumour is not in .*it holds Task91"):
        store.read_manifest(phantom_store, "Task01_BrainTumour")
    with pytest.raises(UserError, match="unknown task 'Task77'"):
        store.read_manifest(phantom_store, "Task77")


def test_cases_do_not_exist_before_the_manifest_does(
    tmp_path: Path, arrays: store.CaseArrays
) -> None:
    store.create_task_group(tmp_path, "Task04_Hippocampus")
    store.write_case(tmp_path, "Task04_Hippocampus", "c", arrays, {})
    assert store.task_names(tmp_path) == ()
    with pytest.raises(UserError, match="holds no converted task"):
        store.read_manifest(tmp_path, "04")
