"""Stores in a real S3 server, on a web server and behind Google's protocol, read as users do."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep import verify
from mvl_dist import cache_folder, case_reader, doctor, loading, store
from mvl_dist.case_reader import CaseReader
from mvl_dist.config import DataConfig
from mvl_dist.data import CaseDataset, Item, RankBatches
from mvl_dist.errors import UserError
from mvl_dist.loading import BatchLoader
from mvl_dist.node_cache import NodeCache
from mvl_dist.patches import PatchDataset
from mvl_dist.place import StorePlace, store_place
from mvl_dist.store import connection, far_array, objects
from tests.object_server import ObjectServer, object_server
from tests.servers import free_port

TASK = "Task93_PhantomLesion"
CASES = 8


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    with object_server() as running:
        yield running


@pytest.fixture
def reachable(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    """The server, as a user's environment names it."""
    yield from in_environment(server, monkeypatch)


def in_environment(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    connection.connect.cache_clear()
    yield server
    connection.connect.cache_clear()


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


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_the_same_as_from_a_folder(
    bucket: StorePlace, phantom_store: Path, workers: int
) -> None:
    assert same_batches(bucket, phantom_store, workers) == CASES // 2


def test_every_array_whole_and_in_part_is_as_in_a_folder(
    bucket: StorePlace, phantom_store: Path
) -> None:
    manifest = store.read_manifest(bucket, "93")
    assert manifest == store.read_manifest(phantom_store, "93")
    assert store.task_names(bucket) == (TASK,)
    case = sorted(manifest.cases)[3]
    box = (slice(1, 9), slice(0, 5), slice(7, 16))
    for array in store.ARRAYS:
        there = store.read_array(phantom_store, TASK, case, array)
        np.testing.assert_array_equal(store.read_array(bucket, TASK, case, array), there)
    image = store.read_array(phantom_store, TASK, case, "image")
    part = store.read_box(bucket, TASK, case, "image", box)
    np.testing.assert_array_equal(part, image[(..., *box)])


def test_a_crop_asks_for_the_index_of_its_shard_once_and_for_its_chunks_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    small = np.zeros((4, 4, 4), np.uint8)
    # Four channels that do not compress: chunks of 2 MB, which are not read as neighbours.
    spaced = store.SpacedArrays(
        rng.integers(0, 2**15, (4, 130, 130, 64)).astype(np.uint16).view(np.float16),
        rng.integers(0, 3, (130, 130, 64)).astype(np.uint8),
        np.ones((5, 4), np.uint16),
    )
    arrays = store.CaseArrays(small[None].astype(np.float16), small, small, spaced)
    store.create_task_group(tmp_path / "s", "T")
    store.write_case(tmp_path / "s", "T", "c", arrays, {})
    apart = (slice(60, 70), slice(125, 130), slice(0, 64))  # chunks (0, 1), (0, 2), (1, 1), (1, 2)
    with object_server(latency_s=0.3) as slow:
        for _ in in_environment(slow, monkeypatch):
            slow.upload(tmp_path / "s", "shard-bucket")
            place = store_place("s3://shard-bucket")
            for first in (True, False):
                slow.taken()
                part = store.read_box(place, "T", "c", "image_spaced", apart)
                np.testing.assert_array_equal(
                    part.view(np.uint16), spaced.image_spaced[(..., *apart)].view(np.uint16)
                )
                seen, most_at_once = slow.taken()
                assert len(seen) == 2 * first + 2  # two pairs of neighbours
                assert most_at_once == 2
            for name, values in arrays.named().items():
                there = store.read_array(place, "T", "c", name)
                np.testing.assert_array_equal(there, values)
            slow.delete("shard-bucket", "T/cases/c/label_spaced/c.0.0.0")
            with pytest.raises(UserError, match="label_spaced"):
                store.read_box(place, "T", "c", "label_spaced", (slice(0, 9),) * 3)


def test_a_case_costs_two_requests_and_what_its_arrays_are_is_asked_once(
    bucket: StorePlace, reachable: ObjectServer
) -> None:
    batches, order = loader(bucket, 0)
    manifest, _ = reachable.taken()
    assert manifest == [f"GET /{'/'.join(key(bucket, TASK + '/manifest.json'))}"]
    for epoch, documents in ((0, 2), (1, 0)):
        order.set_position(epoch)
        cases = Counter(case for batch in batches for case in batch["case"])
        assert sum(cases.values()) == len(cases) == CASES
        seen, _ = reachable.taken()
        assert all(path.startswith("GET ") for path in seen)
        chunks = [path for path in seen if not path.endswith("/zarr.json")]
        assert len(seen) - len(chunks) == documents
        asked = Counter(next(case for case in cases if f"/{case}/" in path) for path in chunks)
        assert set(asked.values()) == {2}


def test_a_case_that_is_not_as_the_others_is_read_as_it_is(
    reachable: ObjectServer, tmp_path: Path
) -> None:
    """zarr.json of the first case read is taken for all: one of another shape says so itself."""
    rng = np.random.default_rng(0)
    shapes = {"a": (1, 4, 4, 4), "b": (2, 4, 4, 4), "c": (1, 4, 4, 4), "d": (1, 8, 2, 6)}
    store.create_task_group(tmp_path / "s", "T")
    images = {}
    for name, shape in shapes.items():
        label = np.zeros(shape[1:], np.uint8)
        images[name] = rng.standard_normal(shape).astype(np.float16)
        store.write_case(
            tmp_path / "s", "T", name, store.CaseArrays(images[name], label, label), {}
        )
    reachable.upload(tmp_path / "s", "unlike-bucket", at_once=8)
    far = store_place("s3://unlike-bucket")
    store.begin_reading(far, "T", [(c, a) for c in shapes for a in ("image", "label")])
    for name in "bacd":  # not the one whose zarr.json was asked for
        np.testing.assert_array_equal(store.read_array(far, "T", name, "image"), images[name])
        assert store.read_array(far, "T", name, "label").shape == shapes[name][1:]


def test_a_damaged_description_is_its_own_cases_fault_alone(
    bucket: StorePlace, reachable: ObjectServer, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, *_ = cases = sorted(store.read_manifest(bucket, TASK).cases)
    for content in (b'{"shape": [1]}', b"", None):
        objects_key = key(bucket, f"{TASK}/cases/{first}/image/zarr.json")
        if content is None:
            reachable.delete(*objects_key)
        else:
            reachable.put(*objects_key, content)
        far_array.forget()
        store.begin_reading(bucket, TASK, [(case, "image") for case in cases])
        with pytest.raises(UserError, match=f"--leave-out {first}"):
            store.read_array(bucket, TASK, first, "image")
        store.read_array(bucket, TASK, second, "image")
        assert verify.main(["--store", str(bucket), "--workers", "1"]) == 1
        assert f"case {first}: image" in capsys.readouterr().out


def test_what_the_nodes_cache_holds_is_not_asked_for_again(
    bucket: StorePlace, reachable: ObjectServer, tmp_path: Path
) -> None:
    manifest = store.read_manifest(bucket, TASK)
    cache_folder.join(tmp_path / "cache")
    try:
        reader = CaseReader(bucket, TASK).through(NodeCache(tmp_path / "cache", 10**9), manifest)
        dataset = CaseDataset(reader, manifest, sorted(manifest.cases), "all")
        order = RankBatches(CASES, 2, 0, 1, seed=0)
        batches = BatchLoader(dataset, order, 0)
        for epoch, requests in ((0, 1 + 2 + 2 * CASES), (1, 0)):
            order.set_position(epoch)
            assert sum(1 for _ in batches) == CASES // 2
            assert len(reachable.taken()[0]) == requests
    finally:
        cache_folder.leave(tmp_path / "cache")


@pytest.mark.parametrize(("may", "are"), [(5, 5), (32, 2 * CASES + 2)])
def test_the_files_of_all_cases_in_sight_are_asked_for_at_once_and_once(
    phantom_store: Path, monkeypatch: pytest.MonkeyPatch, may: int, are: int
) -> None:
    """Batches are of two: the files of this one and the next three; none is let go of unread."""
    monkeypatch.setattr(objects, "AT_ONCE", may)
    monkeypatch.setattr(objects, "AHEAD", objects._Ahead())
    monkeypatch.setattr(objects, "KEPT", 0)
    with object_server(latency_s=0.3) as slow:
        for _ in in_environment(slow, monkeypatch):
            slow.upload(phantom_store / TASK, "slow-bucket", f"{TASK}/", at_once=16)
            batches, _ = loader(store_place("s3://slow-bucket"), 0)
            far_array.forget()
            slow.taken()
            assert sum(1 for _ in batches) == CASES // 2
            seen, most_at_once = slow.taken()
    assert len(seen) == 2 * CASES + 2
    assert most_at_once == are


def test_cases_gone_through_one_by_one_come_several_at_once(
    phantom_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As validation does: image and label one after another would be 16 round trips."""
    with object_server(latency_s=0.3) as slow:
        for _ in in_environment(slow, monkeypatch):
            slow.upload(phantom_store / TASK, "turn-bucket", f"{TASK}/", at_once=16)
            near, far = (
                CaseDataset(CaseReader(place, TASK), manifest, sorted(manifest.cases), "all")
                for place in (phantom_store, store_place("s3://turn-bucket"))
                for manifest in [store.read_manifest(phantom_store, TASK)]
            )
            slow.taken()
            order = [5, 0, 7, 2, 1, 3, 6, 4]
            for there, here in zip(near.in_turn(order), far.in_turn(order), strict=True):
                assert here["case"] == there["case"]
                torch.testing.assert_close(here["image"], there["image"], rtol=0, atol=0)
            seen, most_at_once = slow.taken()
    assert len(seen) == 2 * CASES + 2
    assert most_at_once == 2 * 4 + 2  # four cases of two files, and what these are


@pytest.mark.parametrize(("at_a_time", "shards"), [(10**9, 2 * CASES), (1, 1), (0, 0)])
def test_scans_that_crops_are_cut_of_come_before_they_are_needed(
    bucket: StorePlace,
    reachable: ObjectServer,
    phantom_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at_a_time: int,
    shards: int,
) -> None:
    """Into the cache they go whole, image and label; without one (0) only parts are asked for."""
    monkeypatch.setattr(case_reader, "BYTES_AHEAD", at_a_time)
    manifest = store.read_manifest(bucket, TASK)
    data = DataConfig(grid=(8, 8, 8), resolution="spaced", foreground=1.0)
    near, far = (
        PatchDataset(
            CaseReader(place, TASK).through(cache, manifest), manifest, cases, data, 2, seed=0
        )
        for place, cache in (
            (phantom_store, None),
            (bucket, NodeCache(tmp_path / "cache", 10**9) if at_a_time else None),
        )
        for cases in [sorted(manifest.cases)]
    )
    cache_folder.join(tmp_path / "cache")
    try:
        items = [Item(index, index) for index in range(CASES)]
        reachable.taken()
        far.ahead(items)
        time.sleep(1)
        seen, _ = reachable.taken()
        whole = [path for path in seen if "_spaced/c.0.0.0" in path and "foreground" not in path]
        assert len(whole) == shards
        for item in items:
            here, there = far[item], near[item]
            torch.testing.assert_close(here["image"], there["image"], rtol=0, atol=0)
            torch.testing.assert_close(here["label"], there["label"], rtol=0, atol=0)
        reachable.taken()
        far.ahead(items)
        far[items[3]]
        assert bool(reachable.taken()[0]) == (at_a_time == 0)  # the cache has it all
    finally:
        cache_folder.leave(tmp_path / "cache")


# Mistakes and faults, one line each.


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
    found = [line for line in capsys.readouterr().out.splitlines() if "arrays read" not in line]
    assert [f"case {case}: label:" in line for line in found] == [True]


def test_verify_finds_a_sound_store_sound_and_a_stranger_strange(
    bucket: StorePlace, reachable: ObjectServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main(["--store", str(bucket), "--workers", "1"]) == 0
    assert f"{TASK}: {CASES} cases" in capsys.readouterr().out
    reachable.put(*key(bucket, f"{TASK}/cases/stranger/zarr.json"), b"{}")
    assert verify.main(["--store", str(bucket), "--workers", "1"]) == 1
    assert "case stranger is not in the manifest" in capsys.readouterr().out


def test_doctor_weighs_what_comes_from_afar(
    bucket: StorePlace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.main(["--data", "--store", str(bucket), "--workers", "0"]) == 0
    assert capsys.readouterr().out.startswith(f"{TASK}, {CASES} cases of 16x16x16\n")


def test_a_missing_package_is_one_line(
    reachable: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt obstore") as caught:
        store.read_manifest(store_place("s3://any-bucket"), TASK)
    one_line(caught)


def test_a_web_server_serves_a_store_by_the_tasks_full_name(
    phantom_store: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The server of Python's own library, as a user starts one."""
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=phantom_store, stdout=log, stderr=log)
    try:
        from tests.servers import wait_for_port

        wait_for_port(port)
        place = store_place(f"http://127.0.0.1:{port}")
        assert same_batches(place, phantom_store) == CASES // 2
        assert verify.main(["--store", str(place), "--tasks", TASK, "--workers", "1"]) == 0
        case = sorted(store.read_manifest(place, TASK).cases)[0]
        with pytest.raises(UserError, match="does not hand out parts of files") as caught:
            store.read_box(place, TASK, case, "image_spaced", (slice(0, 9),) * 3)
        one_line(caught)
        with pytest.raises(UserError, match="name the task in full") as caught:
            verify.main(["--store", str(place)])
        one_line(caught)
        with pytest.raises(UserError, match=r"Task04_Hippocampus/manifest.json: missing"):
            store.read_manifest(place, "04")
    finally:
        process.kill()
        process.wait()


def test_googles_store_is_read_by_its_own_protocol(
    phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reads are plain GETs of /BUCKET/KEY, which a folder's server answers as well."""
    (tmp_path / "files" / "gs-bucket").mkdir(parents=True)
    (tmp_path / "files" / "gs-bucket" / "store").symlink_to(phantom_store)
    with object_server(folder=tmp_path / "files") as google:
        account = {
            **{"gcs_base_url": google.address, "disable_oauth": True, "client_email": ""},
            **{"private_key": "", "private_key_id": ""},
        }
        (tmp_path / "account.json").write_text(json.dumps(account))
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
        connection.connect.cache_clear()
        assert same_batches(store_place("gs://gs-bucket/store"), phantom_store) == CASES // 2
