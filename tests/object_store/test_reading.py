"""Stores in a real S3 server, on a web server and behind Google's protocol, read as users do."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep import verify
from mvl_dist import doctor, store
from mvl_dist.errors import UserError
from mvl_dist.place import StorePlace, store_place
from mvl_dist.store import connection, far_array
from tests.object_server import ObjectServer, object_server
from tests.object_store.places import (
    CASES,
    TASK,
    key,
    one_line,
    same_batches,
)
from tests.servers import free_port


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
