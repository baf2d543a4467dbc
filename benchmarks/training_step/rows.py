"""What one measurement found, and a whole result as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One way of one thing.

    Attributes:
        what: a model's whole step, or a part of it.
        whole: whether it is a whole step.
        ms: median of a step, or of a part's forward and backward.
        peak_gib: most memory in use during it; 0 where not measured.
        tflop: of the work, whatever the way (a way that stores or computes more gets no credit).
        difference: relative norm of its results against eager's, 0 where not compared.
        note: why there is no time, or what else is to be known.
    """

    what: str
    variant: str
    batch: int
    whole: bool = True
    ms: float = 0.0
    peak_gib: float = 0.0
    tflop: float = 0.0
    difference: float = 0.0
    note: str = ""

    @property
    def label(self) -> str:
        """What and which way, in words."""
        return f"{self.what}, {self.variant}, batch {self.batch}"

    @property
    def samples_per_second(self) -> float:
        """Samples a second, 0 without a time."""
        return 1000 * self.batch / self.ms if self.ms else 0.0

    @property
    def tflops(self) -> float:
        """TFLOP/s, 0 without a time."""
        return 1000 * self.tflop / self.ms if self.ms else 0.0


@dataclass
class Result:
    """All rows of one call, and what they were measured on."""

    about: dict[str, str]
    matmul_tflops: float = 0.0
    size: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    picks: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def group(self, what: str, batch: int) -> list[Row]:
        """All ways of one thing at one batch size."""
        return [row for row in self.rows if (row.what, row.batch) == (what, batch)]

    def write(self, path: Path) -> None:
        """Write it as JSON, with the rates spelled out."""
        plain = dataclasses.asdict(self)
        for values, row in zip(plain["rows"], self.rows, strict=True):
            values["samples_per_second"] = row.samples_per_second
            values["tflops"] = row.tflops
            values["of_matmul"] = row.tflops / self.matmul_tflops if self.matmul_tflops else 0.0
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(plain, indent=1) + "\n")

    @staticmethod
    def read(path: Path) -> Result:
        """Read what `write` wrote."""
        plain = json.loads(path.read_text())
        names = {field.name for field in dataclasses.fields(Row)}
        plain["rows"] = [
            Row(**{k: v for k, v in row.items() if k in names}) for row in plain["rows"]
        ]
        return Result(**plain)
