"""The paper's numbers, from assets/paper.yaml."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).with_name("assets")
TASK_NUMBERS = tuple(f"Task{number:02d}" for number in range(1, 11))


@functools.cache
def _numbers() -> dict[str, Any]:
    import yaml

    numbers: dict[str, Any] = yaml.safe_load((ASSETS / "paper.yaml").read_text())
    return numbers


def table2(metric: str, model: str, task: str) -> str:
    """A cell of Table 2; '' where the paper has none."""
    row = _numbers()["table2"].get(metric, {}).get(model)
    number = task.partition("_")[0]
    return str(row[TASK_NUMBERS.index(number)]) if row and number in TASK_NUMBERS else ""


def row(table: str, model: str) -> list[str]:
    """A row of Table 3, 4, 5 or 6 (`table3`, ...) with columns as in the file; [] if none."""
    return [str(value) for value in _numbers()[table].get(model, [])]


def models(table: str) -> list[str]:
    """Models that a table of the paper has, in its order."""
    return list(_numbers()[table])
