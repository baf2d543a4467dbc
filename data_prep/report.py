"""What a conversion tells the person who started it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Report:
    """What a conversion of one task did; `raw` is the size of the voxels before compression."""

    task: str
    path: Path
    written: int = 0
    kept: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    read_bytes: int = 0
    raw_bytes: int = 0
    seconds: float = 0.0
    store_bytes: int = 0

    def lines(self) -> list[str]:
        """The report as a person reads it."""
        read, raw = self.read_bytes / 1e6, self.raw_bytes / 1e6
        seconds = max(self.seconds, 1e-9)
        return [
            *(f"{self.task}: note: {note}" for note in self.notes),
            *(f"{self.task}: left out {name}: {why}" for name, why in self.skipped.items()),
            f"{self.task}: {self.written} cases written, {self.kept} unchanged, "
            f"{len(self.skipped)} left out; read {read:.1f} MB in {self.seconds:.1f} s "
            f"({read / seconds:.1f} MB/s compressed, {raw / seconds:.1f} MB/s of voxels); "
            f"{self.store_bytes / 1e6:.1f} MB in {self.path}",
        ]
