"""Where a store may lie."""

import copy
import pickle
from pathlib import Path

import pytest
import yaml

from data_prep import convert
from mvl_dist.config import RunConfig, from_plain, identity, parse, to_plain
from mvl_dist.errors import UserError
from mvl_dist.place import RemotePlace, store_place


@pytest.mark.parametrize(
    ("text", "joined"),
    [
        ("s3://bucket/a/b", "s3://bucket/a/b/c"),
        ("s3://bucket/a/b/", "s3://bucket/a/b/c"),
        ("gs://bucket", "gs://bucket/c"),
        ("http://host:8000/store", "http://host:8000/store/c"),
        ("HTTPS://host", "https://host/c"),
    ],
)
def test_an_address_keeps_its_slashes(text: str, joined: str) -> None:
    place = store_place(text)
    assert isinstance(place, RemotePlace)
    assert str(place / "c") == joined
    assert place / "c" == store_place(joined)
    assert pickle.loads(pickle.dumps(place)) == copy.deepcopy(place) == place


@pytest.mark.parametrize("text", ["store", "/scratch/store", "../a:b", "s3"])
def test_all_else_is_a_folder(text: str) -> None:
    assert store_place(text) == Path(text)


@pytest.mark.parametrize("text", ["s3://", "ftp://host/x", "s3:///path"])
def test_an_address_of_another_kind_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match="a store is a folder, s3://BUCKET/PATH") as caught:
        parse(["--store", text])
    assert text in str(caught.value)


def test_a_run_keeps_the_address_of_its_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MVL_STORE", "s3://bucket/from/environment")
    assert str(parse([]).data.store) == "s3://bucket/from/environment"
    config = parse(["--store", "s3://bucket/my/store"])
    saved = yaml.safe_load(yaml.safe_dump(to_plain(config)))
    assert saved["data"]["store"] == "s3://bucket/my/store"
    assert from_plain(saved, RunConfig(), "test") == config
    # Where the data lie is no part of what a run is.
    assert identity(config, (), "data") == identity(parse(["--store", "here"]), (), "data")


def test_writing_to_an_address_says_how_to_upload() -> None:
    with pytest.raises(UserError, match="aws s3 sync FOLDER s3://bucket/store"):
        convert.main(["--msd-root", "msd", "--store", "s3://bucket/store"])
    with pytest.raises(UserError, match="written to a local folder only"):
        parse(["--output", "s3://bucket/runs"])
