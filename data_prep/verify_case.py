"""What one process does with one case of a store: compare each of its files with its checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mvl_dist import store as zarr_store
from mvl_dist.errors import UserError
from mvl_dist.place import RemotePlace, StorePlace
from mvl_dist.store import CaseInfo, Manifest


@dataclass(frozen=True)
class CaseToVerify:
    """A case, sent to another process; `decode` asks for the arrays' values too."""

    store: StorePlace
    manifest: Manifest
    info: CaseInfo
    decode: bool = False


@dataclass(frozen=True)
class Checked:
    """What is wrong with a case or an array, and the bytes of files and of values looked at."""

    problems: tuple[str, ...]
    read: int = 0
    decoded: int = 0


@dataclass(frozen=True)
class _Array:
    case: CaseToVerify
    name: str
    shape: tuple[int | None, ...]
    """None: any length."""
    dtype: str

    @property
    def folder(self) -> StorePlace:
        return _folder(self.case) / self.name


def _folder(case: CaseToVerify) -> StorePlace:
    return case.store / case.manifest.task.name / "cases" / case.info.name


def verify_case(case: CaseToVerify) -> Checked:
    """Compare every file of a case with its checksum."""
    folder = _folder(case)
    problems = []
    read = decoded = 0
    arrays = _expected_arrays(case)
    listed = [*(array.name for array in arrays), "zarr.json"]
    names = zarr_store.names_in(folder) if tells_names(case.store) else listed
    if not names:
        problems.append("missing: convert again")
    else:
        strange = [name for name in names if name not in listed]
        problems += [f"{name} does not belong there: delete it" for name in strange]
        attributes, wrong = _check_attributes(folder, case)
        problems += wrong
        for array in arrays:
            checked = _check_array(array, attributes)
            problems += [f"{array.name}: {problem}" for problem in checked.problems]
            read += checked.read
            decoded += checked.decoded
    where = f"{case.manifest.task.name}: case {case.info.name}"
    return Checked(tuple(f"{where}: {problem}" for problem in problems), read, decoded)


def _expected_arrays(case: CaseToVerify) -> list[_Array]:
    manifest, info = case.manifest, case.info
    channels = len(manifest.task.modalities)
    expected = [
        _Array(case, "image", (channels, *manifest.grid), "float16"),
        _Array(case, "label", manifest.grid, "uint8"),
        _Array(case, "label_native", info.native_shape, "uint8"),
    ]
    if info.spaced_shape is not None:
        expected += [
            _Array(case, "image_spaced", (channels, *info.spaced_shape), "float16"),
            _Array(case, "label_spaced", info.spaced_shape, "uint8"),
            _Array(case, "foreground_spaced", (None, 4), "uint16"),
        ]
    return expected


def _check_attributes(
    folder: StorePlace, case: CaseToVerify
) -> tuple[Mapping[str, Any], list[str]]:
    """Check a case's zarr.json; returns its attributes, none if they cannot be trusted."""
    document = parsed(folder / "zarr.json")
    attributes = document.get("attributes", {})
    task, name = case.manifest.task.name, case.info.name
    sealed = zarr_store.read_case_attributes(case.store, task, name)
    if sealed is None and (case.manifest.version > 1 or zarr_store.SEAL in attributes):
        return {}, ["zarr.json: damaged, its checksum differs from its content"]
    info = json.loads(json.dumps(asdict(case.info)))
    arrays = info.pop("arrays")
    if sealed is None:  # version 1, which had no such field
        del info["spaced_shape"]
    same = (
        is_group(document)
        and attributes.get("info") == info
        and attributes.get("arrays") == arrays
        and attributes.get("normalisation") == case.manifest.normalisation
    )
    return attributes, [] if same else ["zarr.json: differs from the manifest"]


def _check_array(array: _Array, attributes: Mapping[str, Any]) -> Checked:
    """Compare an array's files with their sums, and its values where those do not settle it."""
    try:
        document = zarr_store.read_bytes(array.folder / "zarr.json")
    except OSError:  # whoever reads the values says why
        return _check_values(array)
    known = attributes.get("metadata", {}).get(array.name)
    if known is not None and hashlib.sha256(document).hexdigest() != known:
        return Checked(("zarr.json: damaged, its checksum differs from the case's",))
    sums = attributes.get("files", {}).get(array.name)
    values = attributes.get("arrays", {}).get(array.name)
    if known is None or sums is None or values != _values_sum(array):
        return _check_values(array)
    differing, read = _differing_files(array, sums)
    if not (differing or array.case.decode):
        there = json.loads(document)
        wrong = _wrong_layout(array, tuple(there["shape"]), there["data_type"])
        return Checked((wrong,) if wrong else (), read)
    checked = _check_values(array)
    problems = checked.problems
    if differing and not problems:
        problems = tuple(f"{name}: is not as it was written, its values are" for name in differing)
    return Checked(problems, read, checked.decoded)


def _values_sum(array: _Array) -> str | None:
    return array.case.info.arrays.get(array.name)


def _differing_files(array: _Array, sums: zarr_store.FileSums) -> tuple[list[str], int]:
    """Names of the files that differ from their sums, and the bytes read."""
    differing, read = [], 0
    for name, known in sums.items():
        try:
            found = zarr_store.sum_of(array.folder / name)
        except (OSError, UserError):  # whoever decodes it says why
            differing.append(name)
            continue
        read += found["bytes"]
        if found != known:
            differing.append(name)
    return differing, read


def _check_values(array: _Array) -> Checked:
    """Decode an array and compare its values with the manifest."""
    task, name = array.case.manifest.task.name, array.case.info.name
    size = 0
    try:
        shape, dtype, parts = zarr_store.read_parts(array.case.store, task, name, array.name)
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part.data)
            size += part.nbytes
    except UserError as error:
        return Checked((str(error),), decoded=size)
    wrong = _wrong_layout(array, shape, dtype)
    if not wrong and digest.hexdigest() != _values_sum(array):
        wrong = "its checksum differs from the manifest's"
    return Checked((wrong,) if wrong else (), decoded=size)


def _wrong_layout(array: _Array, shape: tuple[int, ...], dtype: str) -> str:
    fits = len(array.shape) == len(shape) and all(
        wanted in (None, length) for wanted, length in zip(array.shape, shape, strict=True)
    )
    if fits and dtype == array.dtype:
        return ""
    should = ", ".join("N" if length is None else str(length) for length in array.shape)
    return f"is {dtype} {shape}, should be {array.dtype} ({should})"


def parsed(path: StorePlace) -> dict[str, Any]:
    """A JSON object, or an empty one where there is none."""
    try:
        document = json.loads(zarr_store.read_bytes(path))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def is_group(document: Mapping[str, Any]) -> bool:
    """Whether a zarr.json is that of a group."""
    return {"attributes", "zarr_format", "node_type"} == set(document) and (
        document["zarr_format"],
        document["node_type"],
    ) == (3, "group")


def tells_names(store: StorePlace) -> bool:
    """A web server hands out files and lists none: what lies beside them stays unknown."""
    return not (isinstance(store, RemotePlace) and store.scheme in ("http", "https"))
