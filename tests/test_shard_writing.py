"""Zarr is the oracle: it must read what is written here, and writes the same names and sizes."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from mvl_dist.store.shard_writing import write_shards


def create(folder: Path, values: np.ndarray, shards: tuple[int, ...]) -> zarr.Array:
    return zarr.create_array(
        folder,
        shape=values.shape,
        chunks=(*values.shape[:-3], 8, 8, 8),
        shards=shards,
        dtype=values.dtype,
        compressors=[
            BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", typesize=values.itemsize),
            Crc32cCodec(),
        ],
        chunk_key_encoding={"name": "default", "separator": "."},
        config={"write_empty_chunks": True},
    )


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_shards_are_those_that_zarr_writes(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((2, 29, 17, 24)) * 50).astype(dtype)
    values[:, :8, :8, :8] = 0  # an empty chunk is written too
    shards = (2, 16, 24, 24)
    ours = create(tmp_path / "ours", values, shards)
    write_shards(tmp_path / "ours", ours, values)
    create(tmp_path / "zarr", values, shards)[...] = values

    np.testing.assert_array_equal(zarr.open_array(tmp_path / "ours", mode="r")[...], values)
    names = sorted(path.name for path in (tmp_path / "zarr").iterdir())
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == names
    for name in names:
        assert (tmp_path / "ours" / name).stat().st_size == (
            tmp_path / "zarr" / name
        ).stat().st_size


def test_a_flipped_bit_in_a_chunk_is_refused_by_zarr(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 3, (16, 16, 16)).astype(np.uint8)
    write_shards(tmp_path / "a", create(tmp_path / "a", values, (16, 16, 16)), values)
    (shard,) = (tmp_path / "a").glob("c*")
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_array(tmp_path / "a", mode="r")[...]
