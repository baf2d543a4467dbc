"""A real S3 server, as a user's environment names it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mvl_dist.place import StorePlace, store_place
from tests.object_server import ObjectServer, object_server
from tests.object_store.places import TASK, in_environment


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    with object_server() as running:
        yield running


@pytest.fixture
def reachable(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    """The server, as a user's environment names it."""
    yield from in_environment(server, monkeypatch)


@pytest.fixture
def bucket(
    reachable: ObjectServer, phantom_store: Path, request: pytest.FixtureRequest
) -> StorePlace:
    """A copy of one phantom task of this test's own, below a path of a bucket."""
    name = f"bucket-{abs(hash(request.node.name))}"
    reachable.upload(phantom_store / TASK, name, f"my/store/{TASK}/")
    reachable.put(name, "my/store/zarr.json", (phantom_store / "zarr.json").read_bytes())
    reachable.taken()
    return store_place(f"s3://{name}/my/store")
