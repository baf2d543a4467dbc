"""The task that is read: many cases out of few, in a folder and in a bucket."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from benchmarks.data_path.making import make
from benchmarks.data_path.source import FULL, QUICK, TASK
from mvl_dist.splits import held_out_cases
from mvl_dist.store import Manifest, read_manifest, write_manifest
from tests.object_server import ObjectServer

BUCKET = "bucket"
# Converted cases that the others are copies of: their bytes are other files all the same.
DIFFERENT = 12


def make_store(folder: Path, grid: int, cases: int, msd_root: Path | None, workers: int) -> Path:
    """A store of one task, `benchmarks.data_path.source.TASK`; returns its folder."""
    size = replace(FULL if grid > QUICK.grid else QUICK, cases=DIFFERENT - 1, grid=grid)
    made = make(folder / "made", size, msd_root, workers)
    manifest = read_manifest(made.store, TASK)
    store = folder / "store"
    (store / TASK / "cases").mkdir(parents=True)
    for top in (".", TASK):
        shutil.copy(made.store / top / "zarr.json", store / top / "zarr.json")
    infos = {}
    for number in range(cases):
        like = made.everything[number % DIFFERENT]
        name = f"case_{number:03d}"
        infos[name] = replace(manifest.cases[like], name=name)
        shutil.copytree(
            made.store / TASK / "cases" / like,
            store / TASK / "cases" / name,
            ignore=shutil.ignore_patterns("*_spaced"),  # nothing here reads them
            copy_function=os.link,
        )
    test_cases = held_out_cases(list(infos), TASK, manifest.split_seed)
    write_manifest(store, replace(manifest, cases=infos, test_cases=test_cases))
    shutil.rmtree(folder / "made" / "msd")
    return store


def upload(store: Path, server: ObjectServer) -> None:
    """Put the store into a bucket."""
    server.upload(store, BUCKET, at_once=4)


def sample_bytes(store: Path, manifest: Manifest) -> float:
    """Bytes of an image and its label in the store, the mean over cases."""
    folder = store / TASK / "cases"
    files = [
        file
        for case in manifest.cases
        for array in ("image", "label")
        for file in (folder / case / array / "c").rglob("*")
        if file.is_file()
    ]
    return sum(file.stat().st_size for file in files) / len(manifest.cases)
