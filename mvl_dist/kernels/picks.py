"""What was picked for an operation, and the file in which later runs find it again.

    $XDG_CACHE_HOME/mvl-dist/kernels.json    (~/.cache where XDG_CACHE_HOME is not set)

A pick holds for a device, the versions of torch and Triton, and the very code of the kernels.
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mvl_dist.errors import UserError
from mvl_dist.files import write_text_atomically


@dataclass(frozen=True)
class Pick:
    """Which way an operation runs with arguments of one kind.

    Attributes:
        operation: its name.
        what: dtypes, shapes and options that it holds for.
        way: triton or torch.
        reason: why Triton was not even timed, or lost though it was faster; '' if time decided.
        triton_ms, torch_ms: forward and backward, medians; 0 where not timed.
        difference: relative norm of the two ways' largest difference, of outputs and gradients.
    """

    operation: str
    what: str
    way: str
    reason: str = ""
    triton_ms: float = 0.0
    torch_ms: float = 0.0
    difference: float = 0.0

    def __str__(self) -> str:
        if self.reason:
            return f"{self.operation}: {self.way} ({self.reason})"
        return (
            f"{self.operation}: {self.way} (triton {self.triton_ms:.3f} ms, torch "
            f"{self.torch_ms:.3f} ms, forward and backward; {self.what})"
        )


def cache_file() -> Path:
    """Where picks are kept."""
    folder = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(folder) / "mvl-dist" / "kernels.json"


class PickFile:
    """The picks that hold on a device; a file that cannot be read or written costs time only."""

    def __init__(self, device: str) -> None:
        import triton

        versions = f"torch {torch.__version__}, triton {triton.__version__}"
        self._where = f"{device}, {versions}, kernels {_code()}"

    def read(self, asked: Pick) -> Pick | None:
        """An earlier run's pick for the operation and what it is given."""
        known = _read().get(self._where, {}).get(f"{asked.operation} {asked.what}")
        with contextlib.suppress(TypeError):  # written by another version
            return Pick(**known) if known else None
        return None

    def write(self, pick: Pick) -> None:
        """Keep a pick for later runs."""
        picks = _read()  # again: another process may have written since
        here = picks.setdefault(self._where, {})
        here[f"{pick.operation} {pick.what}"] = dataclasses.asdict(pick)
        with contextlib.suppress(OSError, UserError):
            cache_file().parent.mkdir(parents=True, exist_ok=True)
            write_text_atomically(cache_file(), json.dumps(picks, indent=1))


def _read() -> dict[str, dict[str, Any]]:
    try:
        picks = json.loads(cache_file().read_text())
    except (OSError, ValueError):
        return {}
    return picks if isinstance(picks, dict) else {}


@functools.cache
def _code() -> str:
    """Digest of the operations' source: a changed kernel is timed again."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
