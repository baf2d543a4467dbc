"""All measurements of one call, in their order."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.data_path import crops, disk, making, timing
from benchmarks.data_path.contract import Competitor
from benchmarks.data_path.epochs import Epochs, check, read_all
from benchmarks.data_path.registry import COMPETITORS
from benchmarks.data_path.rows import Result
from benchmarks.data_path.source import FULL, QUICK, Source

# A node's share of a network file system, and of what two workers can ask for: at this rate bytes
# decide, and at this machine's own (over 1 GB/s) they do not.
LIMIT_MB_PER_S = 200


class Bench:
    """All measurements of one call."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.result = Result(timing.about())
        self.rounds = 1 if options.quick else options.rounds

    def run(self, save: Callable[[Result], None]) -> Result:
        """Make, check, measure.

        Args:
            save: is given the result after every round, so that a stopped run has one.
        """
        started = time.monotonic()
        torch.set_num_threads(1)
        size = QUICK if self.options.quick else FULL
        cores = 1 if self.options.quick else len(os.sched_getaffinity(0))
        made = making.make(self.folder, size, self.options.msd_root, cores)
        competitors = self.build(made)
        self.say(f"built after {time.monotonic() - started:.0f} s")
        check(competitors)
        self.say(f"equal: checked after {time.monotonic() - started:.0f} s")
        self.limits(made, competitors)
        crops.measure(self.result, competitors, self.rounds)
        epochs = [
            Epochs(
                self.result,
                competitors,
                workers,
                0.05 if self.options.quick else 1.0,
                self.limit(),
                drop_all=not self.options.quick,
            )
            for workers in self.options.workers
        ]
        for number in range(self.rounds):
            began = time.monotonic()
            for each in epochs:
                each.round(number)
                now = time.monotonic()
                self.result.seconds = now - started
                self.say(
                    f"round {number + 1} of {self.rounds}, {each.workers} workers, "
                    f"after {now - started:.0f} s"
                )
                save(self.result)
            # The next one may take as long as this one did.
            left = number + 1 < self.rounds
            if left and 2 * now - began - started > self.options.seconds:
                self.result.notes.append(f"{number + 1} of {self.rounds} rounds: the time was over")
                break
        return self.result

    def build(self, made: Source) -> list[Competitor]:
        """Every competitor's own store, timed."""
        found = []
        for each in COMPETITORS:
            folder = self.folder / each.__name__.lower()
            folder.mkdir()
            competitor = each(made, folder)
            started = time.perf_counter()
            competitor.build()
            cases = len(made.everything)
            self.result.build_s[each.name] = (time.perf_counter() - started) / cases
            competitor.build_cut()
            found.append(competitor)
        for competitor in found:
            stored = sum(path.stat().st_size for path in competitor.files())
            self.result.disk_bytes[competitor.name] = stored / len(competitor.kept)
        return found

    def limits(self, made: Source, competitors: list[Competitor]) -> None:
        """What no store can beat, and what it is measured with."""
        sample = sum(array.nbytes for array in made.arrays(made.cases[0]))
        memcpy = timing.memcpy_gb_per_s(sample)
        files = next(each for each in competitors if each.name == "memmap").files()
        how = disk.forget(files, everything=not self.options.quick)
        cached = disk.cached_share(files)
        cold = disk.read_mb_per_s(files)
        read_all(files)
        warm = disk.read_mb_per_s(files)
        self.result.limits = {
            "memcpy_gb_per_s": memcpy,
            "memcpy_samples_per_s": memcpy * 1e9 / sample,
            "disk_mb_per_s": cold,
            "disk_memmap_samples_per_s": cold * 1e6 / sample,
            "page_cache_mb_per_s": warm,
            "cached_share_when_cold": cached,
        }
        packed = self.result.disk_bytes["ours"]
        self.result.data = {
            "scans": f"{len(made.cases)} of {'x'.join(map(str, made.size.scan))} voxels, laid of "
            f"{made.made_of}",
            "sample": f"image 1x{made.size.grid}^3 float16, label uint8: {sample / 1e6:.2f} MB, "
            f"packed {packed / 1e6:.2f} MB ({sample / packed:.2f}x)",
            "crop": f"{made.size.patch}^3 of image and label at the scan's resolution",
        }
        why = self.options.quick or disk.why_not_limited(self.folder)
        self.result.notes = [
            f"cold: {how}",
            f"limited rate: {LIMIT_MB_PER_S} MB/s for all processes together (blkio control group)"
            if not why
            else "not measured at a limited rate: " + (why if isinstance(why, str) else "--quick"),
        ]

    def limit(self) -> int:
        """MB/s, 0 where the rate cannot be limited."""
        if self.options.quick or disk.why_not_limited(self.folder):
            return 0
        return LIMIT_MB_PER_S

    def say(self, text: str) -> None:
        """Progress, so that a wait has a reason."""
        print(text, file=sys.stderr, flush=True)
