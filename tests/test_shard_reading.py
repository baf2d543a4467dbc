from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from mvl_dist import store
from mvl_dist.errors import UserError
from mvl_dist.store import writing

SHAPE = (150, 70, 129)


@pytest.fixture(scope="module")
def spaced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, store.SpacedArrays]:
    """A store whose shards hold at most six chunks: two along D at (3, 2, 3) chunks."""
    rng = np.random.default_rng(0)
    arrays = store.SpacedArrays(
        image_spaced=rng.standard_normal((2, *SHAPE), np.float32).astype(np.float16),
        label_spaced=np.zeros(SHAPE, np.uint8),
        foreground_spaced=np.empty((0, 4), np.uint16),
    )
    arrays.label_spaced[100:, 5:9] = 3
    nothing = np.zeros((1, 1, 1), np.uint8)
    folder = tmp_path_factory.mktemp("store")
    store.create_task_group(folder, "T")
    case = store.CaseArrays(np.zeros((2, 1, 1, 1), np.float16), nothing, nothing, arrays)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "SHARD_CHUNKS", 12)
        store.write_case(folder, "T", "c", case, {})
    return folder, arrays


def test_arrays_at_a_spacing_read_back_and_by_zarr_itself(
    spaced: tuple[Path, store.SpacedArrays],
) -> None:
    folder, arrays = spaced
    for name in store.SPACED_ARRAYS:
        expected = getattr(arrays, name)
        got = store.read_array(folder, "T", "c", name)
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)
        independent = zarr.open_array(folder / "T/cases/c" / name, mode="r")
        np.testing.assert_array_equal(independent[...], expected)
    image = zarr.open_array(folder / "T/cases/c/image_spaced", mode="r")
    assert (image.chunks, image.shards) == ((2, 64, 64, 64), (2, 128, 128, 192))


cuts = [st.slices(size).map(lambda cut: slice(cut.start, cut.stop)) for size in SHAPE]


@settings(max_examples=60, deadline=None)
@given(box=st.tuples(*cuts), name=st.sampled_from(["image_spaced", "label_spaced"]))
def test_any_box_is_what_numpy_cuts(
    spaced: tuple[Path, store.SpacedArrays], box: tuple[slice, slice, slice], name: str
) -> None:
    folder, arrays = spaced
    expected = getattr(arrays, name)[(..., *box)]
    np.testing.assert_array_equal(store.read_box(folder, "T", "c", name, box), expected)


def test_a_box_reads_no_file_that_it_does_not_touch(
    spaced: tuple[Path, store.SpacedArrays],
) -> None:
    folder, arrays = spaced
    shard = folder / "T/cases/c/label_spaced/c.1.0.0"
    content = shard.read_bytes()
    near, far = (slice(3, 120), slice(0, 9), slice(60, 70)), (slice(120, 130), *[slice(0, 9)] * 2)
    try:
        shard.unlink()
        got = store.read_box(folder, "T", "c", "label_spaced", near)
        np.testing.assert_array_equal(got, arrays.label_spaced[near])
        with pytest.raises(UserError, match=r"T/cases/c/label_spaced: cannot be read whole"):
            store.read_box(folder, "T", "c", "label_spaced", far)
    finally:
        shard.write_bytes(content)


@pytest.mark.parametrize("place", [-3, -40, 10])
def test_a_flipped_bit_in_the_index_or_in_a_chunk_is_found(
    spaced: tuple[Path, store.SpacedArrays], place: int
) -> None:
    folder, _ = spaced
    shard = folder / "T/cases/c/image_spaced/c.0.0.0.0"
    content = shard.read_bytes()
    damaged = bytearray(content)
    damaged[place] ^= 8
    try:
        shard.write_bytes(bytes(damaged))
        with pytest.raises(UserError, match="crc32c does not hold"):
            store.read_array(folder, "T", "c", "image_spaced")
    finally:
        shard.write_bytes(content)
