"""What was measured, the ratios that have goals, and the whole as JSON."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.data_path.timing import Used

# Of an epoch: from the disk; from the disk at a limited rate; from the page cache; later ones.
COLD, LIMITED, WARM, LATER, CROPS = "cold", "limited", "warm", "later", "crops"


@dataclass
class Row:
    """One competitor in one state, with a measurement a round.

    Attributes:
        workers: loader processes; 0 where crops are read in this process.
        used: round -> what it took.
    """

    name: str
    state: str
    workers: int
    used: dict[int, Used] = field(default_factory=dict)

    def median(self, of: Callable[[Used], float]) -> float:
        """Median over the rounds."""
        return statistics.median(map(of, self.used.values()))

    def span(self) -> tuple[float, float]:
        """Lowest and highest samples a second."""
        rates = [used.rate for used in self.used.values()]
        return min(rates), max(rates)


@dataclass(frozen=True)
class Goal:
    """A ratio of samples a second, ours over a peer's in the same round."""

    key: str
    goal: float
    says: str
    ours: tuple[str, str]
    peer: tuple[str, str]


@dataclass(frozen=True)
class Ratio:
    """What came of a goal at one number of workers: median, lowest, highest over the rounds."""

    key: str
    workers: int
    median: float
    low: float
    high: float


OURS, UNCACHED, PERSISTENT = "ours", "ours, --cache-gb 0", "MONAI PersistentDataset"


def goals(limited: bool) -> tuple[Goal, ...]:
    """All goals.

    Args:
        limited: whether the disk's rate could be limited, as the goal for cold reading wants it.
    """
    cold = LIMITED if limited else COLD
    at = "at a limited rate" if limited else "at this disk's own rate, which is no limit"
    return (
        Goal(
            "later_epochs_vs_memmap",
            0.9,
            "later epochs, of the memory-mapped limit",
            (OURS, LATER),
            ("memmap", LATER),
        ),
        Goal(
            "warm_first_epoch_vs_persistent",
            1.0,
            "first epoch, files in the page cache, over PersistentDataset",
            (OURS, WARM),
            (PERSISTENT, WARM),
        ),
        Goal(
            "cold_first_epoch_vs_persistent",
            1.5,
            f"first epoch, from the disk {at}, over PersistentDataset",
            (OURS, cold),
            (PERSISTENT, cold),
        ),
        Goal(
            "native_crops_vs_blosc2",
            1.0,
            "random crops at the scan's resolution, not cached, over nnU-Net's blosc2",
            (UNCACHED, CROPS),
            ("nnU-Net's blosc2", CROPS),
        ),
        Goal(
            "vs_paper_way",
            200.0,
            "later epochs, over the paper's way",
            (OURS, LATER),
            ("paper's way", WARM),
        ),
    )


@dataclass
class Result:
    """All of one call.

    Attributes:
        data: what was read, and bytes.
        limits: of the machine, as numbers with units in their names.
        notes: how it was made cold, what could not be measured.
        disk_bytes: competitor -> bytes of its files a sample.
        build_s: competitor -> seconds a case to make its files.
    """

    about: dict[str, str]
    data: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    disk_bytes: dict[str, float] = field(default_factory=dict)
    build_s: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0

    def row(self, name: str, state: str, workers: int) -> Row:
        """The row of a measurement, made if it is not there."""
        for row in self.rows:
            if (row.name, row.state, row.workers) == (name, state, workers):
                return row
        self.rows.append(Row(name, state, workers))
        return self.rows[-1]

    @property
    def goals(self) -> tuple[Goal, ...]:
        """Those that apply."""
        return goals(any(row.state == LIMITED for row in self.rows))

    def ratios_of(self, goal: Goal) -> list[Ratio]:
        """One a number of workers, of the rounds in which both were measured."""
        found = []
        for ours in self.rows:
            if (ours.name, ours.state) != goal.ours:
                continue
            peer = self.row(*goal.peer, ours.workers).used
            pairs = [
                used.rate / peer[number].rate
                for number, used in ours.used.items()
                if number in peer
            ]
            if pairs:
                middle = statistics.median(pairs)
                found.append(Ratio(goal.key, ours.workers, middle, min(pairs), max(pairs)))
        return found

    def write(self, path: Path) -> None:
        """As JSON. `ratios` has the lowest median of all numbers of workers, null without one."""
        plain = dataclasses.asdict(self)
        plain["ratios"], plain["goals"] = {}, {}
        for goal in self.goals:
            found = self.ratios_of(goal)
            value = min((ratio.median for ratio in found), default=None)
            plain["ratios"][goal.key] = value
            plain["goals"][goal.key] = {
                "goal": goal.goal,
                "met": value is not None and value >= goal.goal,
                "says": goal.says,
                "by_workers": [dataclasses.asdict(ratio) for ratio in found],
            }
        plain["rows"] = [
            {
                "name": row.name,
                "state": row.state,
                "workers": row.workers,
                "samples_per_s": row.median(lambda used: used.rate),
                "samples_per_s_span": row.span(),
                "cpu_ms_per_sample": row.median(lambda used: used.cpu_ms),
                "disk_mb_per_sample": row.median(lambda used: used.disk_mb),
                "rounds": {n: dataclasses.asdict(used) for n, used in row.used.items()},
            }
            for row in self.rows
            if row.used
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(plain, indent=1) + "\n")
