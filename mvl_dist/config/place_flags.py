"""Places as flags of the command line: `--store DIR` or `--store s3://BUCKET/PATH`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.constructors import PrimitiveConstructorSpec

from mvl_dist.place import RemotePlace, StorePlace, local_folder, store_place

StoreFlag = Annotated[
    StorePlace,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="DIR|ADDRESS",
        instance_from_str=lambda words: store_place(words[0]),
        is_instance=lambda value: isinstance(value, (Path, RemotePlace)),
        str_from_instance=lambda place: [str(place)],
    ),
]
"""A store to read from."""

FolderFlag = Annotated[
    Path,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="DIR",
        instance_from_str=lambda words: local_folder(words[0]),
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda place: [str(place)],
    ),
]
"""A folder to write into; an address is refused."""
