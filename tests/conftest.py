"""What tests share: phantom data, a store of it, and real MSD data where it is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.convert import ConvertOptions, convert_task
from data_prep.phantom import PHANTOM_TASKS, make_phantom_task

REPO = Path(__file__).resolve().parent.parent
GRID = (16, 16, 16)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that launch trainings first: at the end one of two workers would wait for the other."""
    items.sort(key=lambda item: "system" not in item.path.parts)


@pytest.fixture(scope="session")
def msd_root() -> Path:
    """Folder with Task04_Hippocampus, or skip."""
    root = Path(os.environ.get("MVL_MSD_ROOT", REPO.parent / "shared" / "data"))
    if not (root / "Task04_Hippocampus" / "dataset.json").exists():
        pytest.skip(f"no Task04_Hippocampus in {root} (set MVL_MSD_ROOT)")
    return root


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both phantom tasks with 8 cases each; not to be changed by a test."""
    root = tmp_path_factory.mktemp("msd")
    for task in PHANTOM_TASKS:
        make_phantom_task(root, task, cases=8, seed=0)
    return root


@pytest.fixture(scope="session")
def phantom_store(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both phantom tasks converted at 16^3; not to be changed by a test."""
    store = tmp_path_factory.mktemp("store") / "store"
    for folder in sorted(phantom_root.iterdir()):
        convert_task(
            folder,
            ConvertOptions(msd_root=phantom_root, store=store, grid=GRID, workers=1),
        )
    return store


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in shared memory, where a machine has it."""
    place = Path(f"/dev/shm/test-{os.getpid()}-{tmp_path.name}")
    place.mkdir()
    yield place
    shutil.rmtree(place)
