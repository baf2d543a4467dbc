"""Mistakes and faults of an object store, one line each."""

import os
import signal
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from data_prep import verify
from mvl_dist import loading, store
from mvl_dist.errors import UserError
from mvl_dist.place import StorePlace, store_place
from mvl_dist.store import connection
from tests.object_server import ObjectServer, object_server
from tests.object_store.places import TASK, in_environment, key, loader, one_line
from tests.servers import free_port


def test_wrong_keys_are_one_line_that_names_the_variables(
    phantom_store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with object_server() as locked:
        locked.upload(phantom_store / TASK, "locked-bucket", f"{TASK}/")
        allowed = locked.lock()
        place = store_place("s3://locked-bucket")
        for changes, reason in (
            ({}, "InvalidAccessKeyId"),
            ({**allowed, "AWS_SECRET_ACCESS_KEY": "other"}, "SignatureDoesNotMatch"),
        ):
            for name, value in {**locked.environment, **changes}.items():
                monkeypatch.setenv(name, value)
            connection.connect.cache_clear()
            locked.taken()
            with pytest.raises(UserError, match=rf"access refused \({reason}\)") as caught:
                store.read_manifest(place, TASK)
            assert "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in one_line(caught)
            assert len(locked.taken()[0]) == 1  # no use in asking again
            with pytest.raises(UserError, match=rf"access refused \({reason}\)"):
                store.task_names(place)
        # Keys of a profile, as `aws configure` leaves them.
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        profile = tmp_path / "credentials"
        profile.write_text(
            f"[mine]\naws_access_key_id = {allowed['AWS_ACCESS_KEY_ID']}\n"
            f"aws_secret_access_key = {allowed['AWS_SECRET_ACCESS_KEY']}\n"
        )
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
        monkeypatch.setenv("AWS_PROFILE", "mine")
        connection.connect.cache_clear()
        assert store.read_manifest(place, TASK).task.name == TASK
        monkeypatch.setenv("AWS_PROFILE", "absent")
        connection.connect.cache_clear()
        with pytest.raises(UserError, match=r"no credentials .*absent.*AWS_PROFILE") as caught:
            store.read_manifest(place, TASK)
        one_line(caught)


@pytest.fixture
def short_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of an epoch of eight cases is not yet asked for when its first batch comes."""
    monkeypatch.setattr(loading, "IN_SIGHT", 2)


@pytest.mark.usefixtures("short_sight")
def test_keys_withdrawn_in_the_middle_of_an_epoch_are_one_line_at_once(
    phantom_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with object_server() as server:
        for _ in in_environment(server, monkeypatch):
            server.upload(phantom_store / TASK, "short-bucket", f"{TASK}/", at_once=16)
            batches = iter(loader(store_place("s3://short-bucket"), 0)[0])
            next(batches)
            server.lock()
            server.taken()
            with pytest.raises(UserError, match=r"access refused \(InvalidAccessKeyId\)") as caught:
                for _ in batches:
                    pass
            assert f"s3://short-bucket/{TASK}/cases/" in one_line(caught)
            seen = server.taken()[0]
            assert len(seen) == len(set(seen))  # no use in asking again


@pytest.mark.usefixtures("short_sight")
def test_a_server_that_is_gone_in_the_middle_of_an_epoch_is_one_line(
    phantom_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "GIVE_UP_AFTER", timedelta(seconds=1))
    with object_server() as server:
        for _ in in_environment(server, monkeypatch):
            server.upload(phantom_store / TASK, "gone-bucket", f"{TASK}/", at_once=16)
            batches = iter(loader(store_place("s3://gone-bucket"), 0)[0])
            next(batches)
            os.kill(server.pid, signal.SIGKILL)
            with pytest.raises(UserError, match=f"cannot be read from {server.address}") as caught:
                for _ in batches:
                    pass
    assert "check the network" in one_line(caught)


@pytest.mark.usefixtures("short_sight")
def test_a_server_that_comes_back_is_waited_for(phantom_store: Path) -> None:
    """The epoch goes on with the same batches; nobody who trains notices but by the clock."""
    with object_server(folder=phantom_store) as server:
        far = iter(loader(store_place(server.address), 0)[0])
        near = iter(loader(phantom_store, 0)[0])
        next(far), next(near)
        os.kill(server.pid, signal.SIGKILL)
        with object_server(folder=phantom_store, port=server.port, wait=False):
            for here, there in zip(far, near, strict=True):
                assert here["case"] == there["case"]
                torch.testing.assert_close(here["image"], there["image"], rtol=0, atol=0)


def test_no_keys_at_all_is_one_line(
    reachable: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(UserError, match=r"no credentials found.*AWS_SKIP_SIGNATURE") as caught:
        store.read_manifest(store_place("s3://some-bucket/store"), TASK)
    one_line(caught)


def test_a_missing_bucket_store_or_task_says_which(
    bucket: StorePlace, reachable: ObjectServer
) -> None:
    with pytest.raises(UserError, match="there is no bucket 'nowhere-bucket' at http://") as caught:
        store.read_manifest(store_place("s3://nowhere-bucket/store"), TASK)
    one_line(caught)
    assert len(reachable.taken()[0]) == 1  # no use in asking again
    with pytest.raises(UserError, match=r"holds no converted task.*aws s3 sync") as caught:
        store.read_manifest(bucket / "elsewhere", TASK)
    one_line(caught)
    with pytest.raises(UserError, match=rf"Task04_Hippocampus is not in .*it holds {TASK}"):
        store.read_manifest(bucket, "04")


def test_no_network_and_no_answer_are_one_line_within_seconds(
    reachable: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    connection.connect.cache_clear()
    with pytest.raises(UserError, match=r"cannot be read from http://127.*3 retries") as caught:
        store.read_manifest(store_place("s3://away-bucket/store"), TASK)
    assert "check the network" in one_line(caught)
    monkeypatch.setattr(connection, "ANSWER_WITHIN", "200ms")
    with object_server(latency_s=2) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", silent.address)
        connection.connect.cache_clear()
        with pytest.raises(UserError, match=r"cannot be read.*3 retries") as caught:
            store.read_manifest(store_place("s3://silent-bucket/store"), TASK)
    one_line(caught)


def test_an_overloaded_server_is_asked_again_with_a_bound(
    bucket: StorePlace, reachable: ObjectServer
) -> None:
    reachable.refuse(2)
    assert store.read_manifest(bucket, TASK).task.name == TASK
    assert len(reachable.taken()[0]) == 3
    reachable.refuse(100)
    with pytest.raises(UserError, match="503") as caught:
        store.names_in(bucket)
    one_line(caught)
    assert len(reachable.taken()[0]) == 1 + connection.FIRST_RETRIES
    reachable.refuse(0)


@pytest.mark.parametrize("damage", ["lost", "truncated", "flipped"])
def test_a_damaged_object_names_its_case(
    bucket: StorePlace,
    reachable: ObjectServer,
    phantom_store: Path,
    damage: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = sorted(store.read_manifest(bucket, TASK).cases)[5]
    path = f"{TASK}/cases/{case}/label/c/0/0/0"
    content = bytearray((phantom_store / path).read_bytes())
    if damage == "lost":
        reachable.delete(*key(bucket, path))
    else:
        content[len(content) // 2] ^= 8
        kept = content if damage == "flipped" else content[:-7]
        reachable.put(*key(bucket, path), bytes(kept))
    with pytest.raises(UserError, match=f"--leave-out {case}") as caught:
        for _ in loader(bucket, 0)[0]:
            pass
    assert f"{case}/label" in one_line(caught)
    asked = Counter(reachable.taken()[0])
    assert asked[f"GET /{'/'.join(key(bucket, path))}"] == 1  # no use in asking again
    assert verify.main(["--store", str(bucket), "--workers", "1"]) == 1
    found = [line for line in capsys.readouterr().out.splitlines() if " MB read" not in line]
    assert [f"case {case}: label:" in line for line in found] == [True]


def test_a_missing_package_is_one_line(
    reachable: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt obstore") as caught:
        store.read_manifest(store_place("s3://any-bucket"), TASK)
    one_line(caught)
