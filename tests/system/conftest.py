from __future__ import annotations

from pathlib import Path

import pytest

from mvl_dist.models.donors.extract import extract


@pytest.fixture(scope="session")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last block of SmolLM2-135M, extracted as `make train` does."""
    folder = tmp_path_factory.mktemp("weights") / "smollm2-135m"
    return extract("smollm2-135m", (-1,), folder).folder


@pytest.fixture(scope="session")
def arguments(phantom_store: Path, donor: Path) -> list[str]:
    """A small run through everything: real block, LoRA, dropout, augmentation, three regions."""
    return [
        *("--preset", "smoke", "--store", str(phantom_store), "--donor", str(donor)),
        *("--task", "91", "--grid", "16", "16", "16", "--depth", "2", "--llm-position", "2"),
        *("--dropout", "0.2", "--batch-size", "2"),
    ]
