"""Which run on which GPUs of which node: the largest groups first, then the longest runs.

A node takes the first waiting run whenever GPUs become free (list scheduling: Graham, Bounds on
multiprocessing timing anomalies, 1969: at most 4/3 of the optimum for runs of one GPU each). Runs
are trained on one GPU each, except those that do not fit into its memory, or that alone would
outlast all others: these get 2, 4, ... GPUs of one node, as many as their batch allows.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

# Of the ideal speed-up when a run is spread over a node's GPUs; assumed, not measured.
GROUP_EFFICIENCY = 0.85
# Of a GPU's mean load: runs longer than that are spread. The best of these is taken.
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


@dataclass(frozen=True)
class Job:
    """A run to be placed.

    Attributes:
        seconds: of work on one GPU.
        start_seconds: until the first step, on however many GPUs.
        gpus: GPUs of one node that it runs on together.
        least_gpus: below these it does not fit into memory.
        most_gpus: ranks that its global batch can be shared among.
    """

    name: str
    seconds: float
    start_seconds: float = 0.0
    gpus: int = 1
    least_gpus: int = 1
    most_gpus: int = 1

    @property
    def duration(self) -> float:
        """Seconds on `gpus` GPUs."""
        efficiency = 1.0 if self.gpus == 1 else GROUP_EFFICIENCY
        return self.start_seconds + self.seconds / (self.gpus * efficiency)


@dataclass(frozen=True)
class Placed:
    """A job's place: GPUs of a node from `start` to `end`, in seconds."""

    job: Job
    node: int
    gpus: tuple[int, ...]
    start: float
    end: float


@dataclass(frozen=True)
class Schedule:
    """Where and when every job runs on `nodes` nodes of `gpus_per_node`."""

    placed: tuple[Placed, ...]
    nodes: int
    gpus_per_node: int

    @property
    def makespan(self) -> float:
        """Seconds until the last job ends."""
        return max((place.end for place in self.placed), default=0.0)

    @property
    def busy(self) -> float:
        """GPU-seconds in use."""
        return math.fsum((p.end - p.start) * len(p.gpus) for p in self.placed)

    @property
    def utilisation(self) -> float:
        """Share of the GPUs' time until the makespan that jobs fill, 0 to 1."""
        return self.busy / (self.makespan * self.nodes * self.gpus_per_node) if self.placed else 1.0

    @property
    def lower_bound(self) -> float:
        """Seconds that no placement can undercut: all work on all GPUs, or the longest job.

        The longest job counts on as many GPUs as it may have, not on those that it was given:
        else a job that was left alone on one GPU would be its own excuse.
        """
        work = math.fsum(place.job.start_seconds + place.job.seconds for place in self.placed)
        longest = max(
            (_fit(place.job, 0.0, self.gpus_per_node).duration for place in self.placed),
            default=0.0,
        )
        return max(work / (self.nodes * self.gpus_per_node), longest)


def in_order(jobs: Iterable[Job]) -> list[Job]:
    """The order in which jobs are started: large groups, then long ones."""
    return sorted(jobs, key=lambda job: (-job.gpus, -job.duration, job.name))


def simulate(jobs: Iterable[Job], nodes: int, gpus_per_node: int) -> Schedule:
    """Place jobs as the nodes' workers do: each takes the first waiting job when it has room.

    A job waits for room rather than let a smaller one pass, so that large groups never starve.
    """
    free = [list(range(gpus_per_node)) for _ in range(nodes)]
    running: list[tuple[float, int, tuple[int, ...]]] = []
    placed: list[Placed] = []
    now = 0.0
    for job in in_order(jobs):
        if job.gpus > gpus_per_node:
            raise ValueError(f"{job.name} needs {job.gpus} GPUs, a node has {gpus_per_node}")
        while len(free[node := _roomiest(free)]) < job.gpus:
            now, ended, released = heapq.heappop(running)
            free[ended] = sorted([*free[ended], *released])
        gpus = tuple(free[node][: job.gpus])
        del free[node][: job.gpus]
        placed.append(Placed(job, node, gpus, now, now + job.duration))
        heapq.heappush(running, (now + job.duration, node, gpus))
    return Schedule(tuple(placed), nodes, gpus_per_node)


def _roomiest(free: Sequence[Sequence[int]]) -> int:
    return max(range(len(free)), key=lambda node: (len(free[node]), -node))


def grouped(jobs: Sequence[Job], nodes: int, gpus_per_node: int) -> list[Job]:
    """Give GPUs to jobs: as many as memory asks for, more to those that would outlast the rest.

    Jobs longer than some share of a GPU's mean load are spread over 2, 4, ... GPUs; of the shares
    in `SHARES` the one with the least makespan is taken.

    Raises:
        ValueError: a job that needs more GPUs than a node has.
    """
    if not jobs:
        return []
    load = math.fsum(job.seconds for job in jobs) / (nodes * gpus_per_node)
    tried = [
        [_fit(job, load * share, gpus_per_node) for job in jobs] for share in (math.inf, *SHARES)
    ]
    return min(tried, key=lambda sized: simulate(sized, nodes, gpus_per_node).makespan)


def _fit(job: Job, longest: float, gpus_per_node: int) -> Job:
    """The job on the fewest GPUs that hold it and end it within `longest` seconds, if any do."""
    sizes = [1 << power for power in range(gpus_per_node.bit_length())]
    most = max(job.most_gpus, job.least_gpus)
    allowed = [gpus for gpus in sizes if job.least_gpus <= gpus <= most]
    if not allowed:
        raise ValueError(f"{job.name} needs {job.least_gpus} GPUs, a node has {gpus_per_node}")
    for gpus in allowed:
        fitted = replace(job, gpus=gpus)
        if fitted.duration <= longest:
            return fitted
    return replace(job, gpus=allowed[-1])


def best_schedule(jobs: Sequence[Job], nodes: int, gpus_per_node: int) -> Schedule:
    """Jobs in the groups that `grouped` chooses, placed."""
    return simulate(grouped(jobs, nodes, gpus_per_node), nodes, gpus_per_node)
