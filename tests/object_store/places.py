"""Places and loaders that tests of object stores share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mvl_dist import store
from mvl_dist.case_reader import CaseReader
from mvl_dist.data import CaseDataset, RankBatches
from mvl_dist.errors import UserError
from mvl_dist.loading import BatchLoader
from mvl_dist.place import StorePlace
from mvl_dist.store import connection
from tests.object_server import ObjectServer

TASK = "Task93_PhantomLesion"
CASES = 8


def in_environment(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    connection.connect.cache_clear()
    yield server
    connection.connect.cache_clear()


def key(place: StorePlace, path: str) -> tuple[str, str]:
    """Bucket and key of a file below a store."""
    name, _, rest = str(place / path).removeprefix("s3://").partition("/")
    return name, rest


def one_line(caught: pytest.ExceptionInfo[UserError]) -> str:
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert len(text) < 900
    return text


def loader(place: StorePlace, workers: int) -> tuple[BatchLoader, RankBatches]:
    manifest = store.read_manifest(place, TASK)
    dataset = CaseDataset(CaseReader(place, TASK), manifest, sorted(manifest.cases), "all")
    order = RankBatches(CASES, 2, 0, 1, seed=0)
    return BatchLoader(dataset, order, workers), order


def same_batches(far: StorePlace, near: Path, workers: int = 0) -> int:
    """Compare an epoch of two stores, bit by bit; returns the number of batches."""
    count = 0
    for here, there in zip(loader(far, workers)[0], loader(near, 0)[0], strict=True):
        count += 1
        assert here["case"] == there["case"]
        for part in ("image", "label"):
            torch.testing.assert_close(here[part], there[part], rtol=0, atol=0)
    return count
