"""What must survive: kill -9, a worker killed for its memory, a disk that fills up."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mvl_dist.errors import UserError
from mvl_dist.parallel import processes, run_cases
from tests.data_prep.tiny import NAME, convert_tiny, make_tiny, nothing_half_written

CONVERT = "import sys; from mvl_dist.cli import main; sys.exit(main(['convert', *sys.argv[1:]]))"
LIMITED = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); {CONVERT}"


def start(code: str, folder: Path, store: Path, workers: int, grid: int) -> subprocess.Popen[str]:
    options = ["--msd-root", str(folder), "--store", str(store), "--workers", str(workers)]
    return subprocess.Popen(
        [sys.executable, "-c", code, *options, "--grid", *[str(grid)] * 3],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def running_with(text: str) -> list[int]:
    """Processes whose environment holds `text`: workers inherit it from the killed parent."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if text.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def test_a_second_run_completes_one_that_was_killed(
    phantom_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, store = phantom_root / "Task91_PhantomTumour", tmp_path / "s"
    mark = f"killed-{os.getpid()}-{time.time_ns()}"
    monkeypatch.setenv("MVL_TEST_MARK", mark)
    process = start(CONVERT, folder, store, workers=2, grid=64)
    monkeypatch.delenv("MVL_TEST_MARK")
    cases = store / folder.name / "cases"
    deadline = time.monotonic() + 60
    while len(list(cases.glob("tumour_*/zarr.json"))) < 2 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (store / folder.name / "manifest.json").exists()
    deadline = time.monotonic() + 10
    while running_with(mark) and time.monotonic() < deadline:
        time.sleep(0.02)
    orphans = running_with(mark)
    for orphan in orphans:
        os.kill(orphan, signal.SIGKILL)
    assert orphans == [], "workers outlived their parent"

    grid = (64, 64, 64)
    report, resumed = convert_tiny(folder, store, grid=grid)
    assert report.kept >= 2
    assert report.written == 8 - report.kept > 0
    assert resumed.checksum == convert_tiny(folder, tmp_path / "whole", grid=grid)[1].checksum
    assert not list(store.rglob(".partial-*"))


def die(job: int) -> int:
    if job == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return job


def exhaust(job: int) -> int:
    raise MemoryError


def test_a_killed_worker_is_one_line_that_says_what_to_do() -> None:
    with pytest.raises(UserError, match=r"ran out of memory or was killed.*fewer --workers"):
        list(run_cases(die, range(4), workers=2, what="cases"))
    with pytest.raises(UserError, match="fewer --workers"):
        list(run_cases(exhaust, [1], workers=1, what="cases"))


def process_id(job: int) -> int:
    return os.getpid()


def test_processes_serve_several_passes_after_a_failed_one_too() -> None:
    with processes(2) as pool:
        seen = set(run_cases(process_id, range(6), 2, "first", pool=pool))
        with pytest.raises(UserError, match="fewer --workers"):
            list(run_cases(exhaust, range(6), 2, "second", pool=pool))
        seen |= set(run_cases(process_id, range(6), 2, "third", pool=pool))
    assert os.getpid() not in seen
    assert len(seen) <= 2
    for process in seen:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_a_file_that_cannot_grow_is_one_line_and_resumable(tmp_path: Path) -> None:
    folder, store = make_tiny(tmp_path / "msd", "CT"), tmp_path / "s"
    process = start(LIMITED, folder, store, workers=1, grid=48)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.strip().splitlines()[-1].startswith(f"error: cannot write to {store}")
    assert "Traceback" not in errors
    assert nothing_half_written(store)
    assert len(convert_tiny(folder, store, grid=(48, 48, 48))[1].cases) == 8


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_line_and_more_room_is_all_it_takes(
    small_disk: Path, tmp_path: Path, workers: int
) -> None:
    folder, store = make_tiny(tmp_path / "msd", "CT"), small_disk / "s"
    with pytest.raises(UserError, match=r"cannot write to .*No space left") as caught:
        convert_tiny(folder, store, grid=(48, 48, 48), workers=workers)
    assert "\n" not in str(caught.value)
    assert nothing_half_written(store)
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    report, manifest = convert_tiny(folder, store, grid=(48, 48, 48))
    assert report.kept > 0
    assert len(manifest.cases) == 8
    assert (store / NAME / "manifest.json").exists()
