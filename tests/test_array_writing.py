"""Zarr is the oracle: it must read what is written here, and writes the same names and sizes."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from mvl_dist.store.array_writing import write_array

Shape = tuple[int, ...]


def written_by_zarr(folder: Path, values: np.ndarray, chunk: Shape, shard: Shape | None) -> None:
    array = zarr.create_array(
        folder,
        shape=values.shape,
        chunks=chunk,
        shards=shard,
        dtype=values.dtype,
        compressors=[
            BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", typesize=values.itemsize),
            Crc32cCodec(),
        ],
        chunk_key_encoding={"name": "default", "separator": "."},
        config={"write_empty_chunks": True},
    )
    array[...] = values


def drawn(shape: Shape, dtype: str) -> np.ndarray:
    values = np.random.default_rng(0).integers(-9, 9, shape).repeat(8, axis=-1)
    values = values[..., : shape[-1]].astype(dtype)
    values[:, :8, :8, :8] = 0  # an empty chunk is written too
    return values


@pytest.mark.parametrize("dtype", ["float16", "uint8", "uint16"])
@pytest.mark.parametrize(
    ("shape", "chunk", "shard"),
    [
        ((2, 29, 17, 24), (2, 8, 8, 8), (2, 16, 24, 24)),
        ((2, 29, 17, 24), (2, 29, 17, 24), None),
        ((0, 4), (1, 4), None),
    ],
    ids=["sharded", "one chunk", "nothing in it"],
)
def test_an_array_is_as_zarr_writes_it(
    tmp_path: Path, dtype: str, shape: Shape, chunk: Shape, shard: Shape | None
) -> None:
    values = drawn(shape, dtype) if len(shape) == 4 else np.empty(shape, dtype)
    write_array(tmp_path / "ours", values, chunk, shard, ".")
    written_by_zarr(tmp_path / "zarr", values, chunk, shard)

    np.testing.assert_array_equal(zarr.open_array(tmp_path / "ours", mode="r")[...], values)
    ours, zarrs = (
        {path.name: path.stat().st_size for path in (tmp_path / who).iterdir()}
        for who in ("ours", "zarr")
    )
    assert ours == zarrs
    document = "zarr.json"
    assert (tmp_path / "ours" / document).read_text() == (tmp_path / "zarr" / document).read_text()


@pytest.mark.parametrize("shard", [(16, 16, 16), None])
def test_a_flipped_bit_in_a_chunk_is_refused_by_zarr(tmp_path: Path, shard: Shape | None) -> None:
    values = np.random.default_rng(0).integers(0, 3, (16, 16, 16)).astype(np.uint8)
    write_array(tmp_path / "a", values, (8, 8, 8) if shard else (16, 16, 16), shard, ".")
    (file,) = (tmp_path / "a").glob("c*")
    content = bytearray(file.read_bytes())
    content[40] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_array(tmp_path / "a", mode="r")[...]


@pytest.mark.parametrize("shard", [(1, 16, 16, 16), None], ids=["sharded", "one chunk"])
def test_noise_is_stored_as_it_is(tmp_path: Path, shard: Shape | None) -> None:
    values = np.random.default_rng(0).standard_normal((1, 16, 16, 16)).astype(np.float16)
    write_array(tmp_path / "a", values, values.shape, shard, ".")
    (file,) = (tmp_path / "a").glob("c*")
    assert values.tobytes() in file.read_bytes()
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a", mode="r")[...], values)
