"""Arrays of one chunk, read without Zarr: what Zarr reads, and nothing that it would make up."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ZstdCodec

from mvl_dist.store.chunk_reading import read_chunk, read_chunk_file

VALUES = np.random.default_rng(0).standard_normal((2, 5, 6, 7)).astype(np.float16)


def write(folder: Path, values: Any = VALUES, **layout: Any) -> Path:
    """An array as the store's writer makes it, by Zarr, but for what `layout` says."""
    compressors = [BloscCodec(cname="lz4", typesize=values.itemsize), Crc32cCodec()]
    usual = {"chunks": values.shape, "compressors": compressors}
    array = zarr.create_array(folder, shape=values.shape, dtype=values.dtype, **(usual | layout))
    array[...] = values
    return folder


def fetched(folder: Path, out: Any = None) -> Any:
    document = (folder / "zarr.json").read_bytes()
    return read_chunk(document, lambda name: (folder / name).read_bytes(), out)


def out_of_a_folder(folder: Path, out: Any = None) -> Any:
    return read_chunk_file((folder / "zarr.json").read_bytes(), folder, out)


@pytest.fixture(params=[fetched, out_of_a_folder])
def read(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("dtype", ["float16", "uint8", "uint16"])
@pytest.mark.parametrize("separator", ["/", "."])
def test_it_reads_what_zarr_reads(read: Any, dtype: str, separator: str, tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 200, (3, 4, 5)).astype(dtype)
    folder = write(
        tmp_path / "a", values, chunk_key_encoding={"name": "default", "separator": separator}
    )
    found = read(folder)
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, zarr.open_array(folder, mode="r")[...])


def test_a_list_of_nothing_has_no_chunk_to_read(read: Any, tmp_path: Path) -> None:
    folder = write(tmp_path / "a", np.empty((0, 4), np.uint16), chunks=(1, 4))
    assert read(folder).shape == (0, 4)


def test_a_lost_chunk_is_an_error_and_not_zeros(read: Any, tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    (folder / "c/0/0/0/0").unlink()
    assert not zarr.open_array(folder, mode="r")[...].any()  # what Zarr makes of it
    with pytest.raises(FileNotFoundError):
        read(folder)


def stored(folder: Path) -> Path:
    """An array that blosc is told not to compress, of more than is read at once."""
    values = np.random.default_rng(2).standard_normal((3, 10, 100, 100)).astype(np.float16)
    codec = BloscCodec(cname="lz4", typesize=2, clevel=0)
    return write(folder, values, compressors=[codec, Crc32cCodec()])


@pytest.mark.parametrize(
    ("make", "byte"),
    [
        (write, 0),
        (write, 30),
        (write, -1),
        (stored, 0),
        (stored, 20),
        (stored, 599_999),
        (stored, -1),
    ],
)
def test_a_flipped_bit_is_an_error(
    read: Any, make: Callable[[Path], Path], byte: int, tmp_path: Path
) -> None:
    folder = make(tmp_path / "a")
    file = folder / "c/0/0/0/0"
    data = bytearray(file.read_bytes())
    data[byte] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="crc32c"):
        read(folder)


@pytest.mark.parametrize("size", [3, 9])
def test_a_shape_that_is_not_the_chunks_is_an_error(read: Any, size: int, tmp_path: Path) -> None:
    """More than was stored would be whatever lay in memory before."""
    folder = write(tmp_path / "a")
    document = json.loads((folder / "zarr.json").read_bytes())
    document["shape"][1] = document["chunk_grid"]["configuration"]["chunk_shape"][1] = size
    (folder / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"not of the size that its zarr\.json says"):
        read(folder)


def test_several_chunks_are_an_error_and_not_the_first_of_them(read: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not one chunk: \(2, 5, 3, 7\) of \(2, 5, 6, 7\)"):
        read(write(tmp_path / "a", chunks=(2, 5, 3, 7)))


@pytest.mark.parametrize(
    "layout",
    [
        {"compressors": [ZstdCodec(), Crc32cCodec()]},
        {"compressors": [BloscCodec(cname="lz4", typesize=2)]},
        {"serializer": BytesCodec(endian="big")},
    ],
    ids=["zstd", "no checksum", "big-endian"],
)
def test_another_encoding_is_an_error(read: Any, layout: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="another encoding than this store's"):
        read(write(tmp_path / "a", **layout))


def test_what_is_not_compressed_is_read_too(read: Any, tmp_path: Path) -> None:
    folder = stored(tmp_path / "a")
    out = np.empty((3, 10, 100, 100), np.float16)
    assert read(folder, out) is out
    np.testing.assert_array_equal(out, zarr.open_array(folder, mode="r")[...])


@pytest.mark.parametrize("size", [0, 3, 19, 600_000])
def test_a_truncated_file_is_an_error(read: Any, size: int, tmp_path: Path) -> None:
    folder = stored(tmp_path / "a")
    file = folder / "c/0/0/0/0"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match="crc32c" if size else "not of the size"):
        read(folder)


@pytest.mark.parametrize("place", [np.empty((2, 5, 6, 7), np.float32), np.empty((5, 6, 7), "f2")])
def test_a_place_of_another_kind_is_an_error(read: Any, place: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is float16 \(2, 5, 6, 7\), asked for"):
        read(write(tmp_path / "a"), place)
