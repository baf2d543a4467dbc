"""Writing an array of a case: the zarr.json and the files that Zarr would write, without Zarr.

To import Zarr costs every process of a conversion half a second, and its writer more than the
compression. Source: Zarr v3 core specification, https://zarr-specs.readthedocs.io.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvl_dist.store.encoding import blosc_settings, encode
from mvl_dist.store.file_sums import write_summed
from mvl_dist.store.format import DOCUMENT
from mvl_dist.store.shard_writing import shard_parts

if TYPE_CHECKING:
    import numpy.typing as npt

_CRC = {"name": "crc32c"}
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}


def write_array(
    folder: Path,
    values: npt.NDArray[Any],
    chunk: Sequence[int],
    shard: Sequence[int] | None,
    separator: str,
) -> dict[str, dict[str, Any]]:
    """Write an array into `folder`, which is made; returns the sums of its files (`FileSums`).

    An all-zero chunk is written too: a lost one could else pass for it.

    Args:
        chunk: shape of what is compressed alone; without `shard` that is the array, but for an
            axis of no length, which counts as 1 here and gives no chunk.
        shard: shape of what one file holds, multiples of `chunk`; None for a file a chunk.
        separator: what stands between the numbers of a file's name.

    Raises:
        OSError: the disk is full or not writable.
    """
    import numpy as np

    folder.mkdir()
    document = _document(values, chunk, shard, separator)
    (folder / DOCUMENT).write_text(json.dumps(document, indent=2))
    sums: dict[str, dict[str, Any]] = {}
    if values.size == 0:
        return sums
    steps = chunk if shard is None else shard
    places = itertools.product(
        *(range(-(-size // step)) for size, step in zip(values.shape, steps, strict=True))
    )
    for place in places:
        box = (slice(n * step, (n + 1) * step) for n, step in zip(place, steps, strict=True))
        part = values[tuple(box)]
        name = separator.join(map(str, ("c", *place)))
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if shard is None:
            parts: Iterable[bytes] = encode(np.ascontiguousarray(part))
        else:
            parts = shard_parts(part, shard, chunk)
        sums[name] = write_summed(path, parts)
    return sums


def _document(
    values: npt.NDArray[Any], chunk: Sequence[int], shard: Sequence[int] | None, separator: str
) -> dict[str, Any]:
    """The zarr.json of an array, its keys in Zarr's order."""
    itemsize = values.dtype.itemsize
    codecs: list[dict[str, Any]] = [
        _LITTLE if itemsize > 1 else {"name": "bytes"},
        {"name": "blosc", "configuration": blosc_settings(itemsize)},
        _CRC,
    ]
    if shard is not None:
        sharding = {
            "chunk_shape": list(chunk),
            "codecs": codecs,
            "index_codecs": [_LITTLE, _CRC],
            "index_location": "end",
        }
        codecs = [{"name": "sharding_indexed", "configuration": sharding}]
    return {
        "shape": list(values.shape),
        "data_type": values.dtype.name,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": list(chunk if shard is None else shard)},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": separator}},
        "fill_value": 0.0 if values.dtype.kind == "f" else 0,
        "codecs": codecs,
        "attributes": {},
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }
