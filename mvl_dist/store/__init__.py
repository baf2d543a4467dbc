"""The Zarr store: its format, its only writer, its only reader."""

from mvl_dist.store.format import (
    ARRAYS,
    MANIFEST,
    SPACED_ARRAYS,
    STORE_VERSION,
    CaseArrays,
    CaseInfo,
    Manifest,
    Shape3D,
    SpacedArrays,
    Spacing,
    array_sha256,
    regions_of,
)
from mvl_dist.store.listing import names_in, read_bytes, task_names, unpublished_names
from mvl_dist.store.reading import begin_reading, read_array, read_box, read_files, read_manifest
from mvl_dist.store.seal import SEAL, seal_holds, sealed_json
from mvl_dist.store.writing import (
    array_metadata,
    case_text,
    create_task_group,
    read_case_attributes,
    withdraw_manifest,
    write_case,
    write_manifest,
)

__all__ = [
    "ARRAYS",
    "MANIFEST",
    "SEAL",
    "SPACED_ARRAYS",
    "STORE_VERSION",
    "CaseArrays",
    "CaseInfo",
    "Manifest",
    "Shape3D",
    "SpacedArrays",
    "Spacing",
    "array_metadata",
    "array_sha256",
    "begin_reading",
    "case_text",
    "create_task_group",
    "names_in",
    "read_array",
    "read_box",
    "read_bytes",
    "read_case_attributes",
    "read_files",
    "read_manifest",
    "regions_of",
    "seal_holds",
    "sealed_json",
    "task_names",
    "unpublished_names",
    "withdraw_manifest",
    "write_case",
    "write_manifest",
]
