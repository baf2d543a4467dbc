"""A rank's share: of the cases, by their size, and of its machine's cores."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from mvl_dist.plan import Plan

T = TypeVar("T")


def threads_of_rank() -> int:
    """Cores that this process may use, shared among the ranks of its machine."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def share_by_size(
    items: Sequence[T], sizes: Mapping[T, int], rank: int, world_size: int
) -> list[T]:
    """This rank's part of a list, so that the sums of sizes differ little; in the list's order.

    The largest first, each to the rank with least so far (ties to the lower rank), as every rank
    finds alike. Cases of one task differ in size by a factor of ten.
    """
    loads = [0] * world_size
    mine = set()
    for item in sorted(items, key=lambda item: -sizes[item]):
        least = loads.index(min(loads))
        loads[least] += sizes[item]
        if least == rank:
            mine.add(item)
    return [item for item in items if item in mine]


def native_sizes(plan: Plan) -> dict[str, int]:
    """Voxels of each case's own grid: what its evaluation takes time by."""
    return {
        name: int(np.prod(case.native_shape, dtype=np.int64))
        for name, case in plan.manifest.cases.items()
    }
