"""Exports that the tests of this folder share."""

from pathlib import Path

import pytest

from tests.data_prep.nnunet.exported import CT, MRI, Exported, exported, save_lps
from tests.data_prep.tiny import NAME, convert_tiny, make_tiny


@pytest.fixture(scope="module")
def phantoms(
    phantom_root: Path, phantom_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Exported]:
    """Both phantom tasks exported; not to be changed by a test."""
    output = tmp_path_factory.mktemp("nnunet")
    return {task: exported(phantom_root, phantom_store, task, output) for task in (MRI, CT)}


@pytest.fixture
def tiny(tmp_path: Path) -> Exported:
    """The tiny task exported, one scan LPS: a test may damage everything."""
    folder = make_tiny(tmp_path / "msd")
    save_lps(folder)
    convert_tiny(folder, tmp_path / "store")
    return exported(tmp_path / "msd", tmp_path / "store", NAME, tmp_path / "out")
