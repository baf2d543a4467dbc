"""Random crops at the scan's own resolution, in one process: what a patch costs to read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.data_path.contract import Box, Competitor
from benchmarks.data_path.rows import CROPS, Result
from benchmarks.data_path.source import Source
from benchmarks.data_path.timing import Used, Watch
from mvl_dist.store import read_manifest


def boxes(source: Source, seed: int) -> list[tuple[str, Box]]:
    """Cases and where to cut them, uniformly over all places that lie inside."""
    rng = np.random.default_rng(seed)
    manifest = read_manifest(source.store, source.msd.name)
    found = []
    for _ in range(source.size.crops):
        case = source.cut[rng.integers(len(source.cut))]
        shape = manifest.cases[case].spaced_shape
        assert shape is not None
        starts = [int(rng.integers(n - source.size.patch + 1)) for n in shape]
        d, h, w = (slice(a, a + source.size.patch) for a in starts)
        found.append((case, (d, h, w)))
    return found


def check(competitors: Sequence[Competitor]) -> None:
    """See that all cut the same.

    Raises:
        SystemExit: one does not.
    """
    for competitor in competitors:
        for case, box in boxes(competitor.source, seed=0)[:4]:
            image, label = competitor.source.spaced(case)
            expected = image[(..., *box)], label[box]
            for ours, theirs in zip(expected, competitor.box(case, box), strict=True):
                if ours.dtype != theirs.dtype or not np.array_equal(ours, theirs):
                    raise SystemExit(f"{competitor.name}: crop {box} of {case} differs")


def measure(result: Result, competitors: Sequence[Competitor], rounds: int) -> None:
    """All competitors cut the same boxes, in turns, from files in the page cache."""
    able = [each for each in competitors if each.cuts()]
    for each in able:
        each.fill()
    check(able)
    source = able[0].source
    size = source.size.patch
    image = np.zeros((1, size, size, size), np.float16)
    label = np.zeros((size, size, size), np.uint8)
    for case in source.cut:  # every box of a cached case is a later one; and all is read once
        for each in able:
            each.box(case, (slice(0, size),) * 3)
    for number in range(rounds):
        wanted = boxes(source, seed=number + 1)
        turn = number % len(able)
        for each in able[turn:] + able[:turn]:
            watch = Watch()
            for case, box in wanted:
                image[...], label[...] = each.box(case, box)
            used = Used(len(wanted), *watch.so_far())
            result.row(each.name, CROPS, 0).used[number] = used
    for each in able:
        each.forget()
