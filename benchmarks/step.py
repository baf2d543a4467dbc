"""How long does a training step take, and each of its parts, and how far is the machine's limit?

    python -m benchmarks.step [--device cpu|cuda] [--quick] [--json FILE]

One call, at most `--seconds`: the most important measurements come first, and what no time was left
for is listed. JSON, table (.txt) and plot (.png) lie side by side in benchmarks/results/. Needs
torch, transformers and peft; on a GPU also Triton; matplotlib for the plot, which can be drawn from
the JSON elsewhere (`--plot FILE.json`).
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

# As a script, Python puts its own folder first in the path, and not the project's.
if sys.path and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks.training_step import machine, parts, show
from benchmarks.training_step.machine import Budget
from benchmarks.training_step.rows import Result, Row
from benchmarks.training_step.variants import (
    EIGHT_BITS,
    ON_A_CPU,
    PAPER,
    TINY,
    VARIANTS,
    Size,
    Step,
    missing,
    model_of,
    running,
)
from mvl_dist.models.measure.flop import training_tflop_per_sample

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("medvisionllama", "vit_baseline")
SECONDS = 460.0
# What torch.compile may take, for the decision whether it still fits: a whole step, and a part.
SECONDS_TO_COMPILE = {True: 100.0, False: 20.0}


class Bench:
    """All measurements of one call."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device(options.device)
        self.cuda, quick = self.device.type == "cuda", options.quick
        self.size = TINY if quick else PAPER if self.cuda else ON_A_CPU
        self.batch = 2 if quick else 4
        self.sweep = (1,) if quick else (1, 2, 8, 16)
        self.seconds_each = 0.05 if quick else 2.0
        self.variants = [way for way in options.variants if way not in EIGHT_BITS]
        self.eight_bits = [way for way in options.variants if way in EIGHT_BITS]
        self.budget = Budget(options.seconds)
        about = {"date": time.strftime("%Y-%m-%d"), **machine.about(self.device)}
        self.result = Result(about, size=_described(self.size))
        self.eager: dict[tuple[str, int], torch.Tensor] = {}

    def run(self) -> Result:
        """Measure in the order of importance."""
        edge = 8192 if self.cuda else 1024
        self.result.matmul_tflops = machine.matmul_tflops(self.device, self.size.dtype, edge)
        work = {name: self.tflop(name) for name in MODELS}
        for name in MODELS:
            self.steps(name, self.batch, work[name], self.variants)
        for part in parts.all_parts(self.size, self.batch, self.device):
            self.part(part)
        self.adam()
        # Of the model with a frozen block, at one size: what eight bits bring and how they differ.
        self.steps(MODELS[0], self.batch, work[MODELS[0]], self.eight_bits)
        quick = [variant for variant in self.variants if variant != "compile"]
        slow = [variant for variant in self.variants if variant == "compile"]
        for variants in (quick, slow):  # compiling again for every size may take all the time
            for batch in self.sweep:
                for name in MODELS:
                    self.steps(name, batch, work[name], variants)
        self.result.left_out = self.budget.left_out
        self.result.seconds = self.budget.used()
        return self.result

    def tflop(self, name: str) -> float:
        """Work of a model's step with one sample."""
        model = model_of(name, self.size, self.device, self.size.dtype)
        return training_tflop_per_sample(model, 1, (self.size.grid,) * 3)

    def steps(self, name: str, batch: int, tflop: float, variants: Sequence[str]) -> None:
        """A model's whole step at one batch size, every way."""

        def ready(row: Row) -> Step:
            return Step(row.variant, name, self.size, batch, self.device)

        rows = [
            Row(name, variant, batch, tflop=batch * tflop, note=missing(variant, self.device))
            for variant in variants
        ]
        self.measure(rows, ready)

    def part(self, part: parts.Part) -> None:
        """A part of the step at the main batch size, every way."""
        rows = [
            Row(part.name, variant, self.batch, False, tflop=part.tflop, note=way.note)
            for variant, way in part.ways.items()
            if variant in self.variants or way.peer
        ]
        self.measure(rows, lambda row: part.call(part.ways[row.variant]))

    def adam(self) -> None:
        """The optimizer alone: torch's three implementations."""
        ways = parts.adam_ways(model_of(MODELS[0], self.size, self.device, torch.float32))
        rows = [Row("Adam", variant, self.batch, False) for variant in ways]
        self.measure(rows, lambda row: ways[row.variant])

    def measure(self, rows: list[Row], ready: Callable[[Row], Callable[[], Any]]) -> None:
        """Measure rows: one by one on a GPU, for their memory; in turns on a CPU, for fairness."""
        fit = [row for row in rows if not row.note and self._fits(row)]
        for group in [[row] for row in fit] if self.cuda else [fit]:
            for row in self._group(group, ready):
                self.result.rows.append(row)
                said = f"{row.ms:.3f} ms" if row.ms else row.note
                print(f"{row.label}: {said}", file=sys.stderr, flush=True)
        self.result.rows += [row for row in rows if row.note]

    def _fits(self, row: Row) -> bool:
        """Whether there is time for it, its compilation included."""
        if row.variant == "compile":
            return self.budget.allows(row.label, SECONDS_TO_COMPILE[row.whole])
        return self.budget.allows(row.label, 10.0 if self.cuda else 2.0)

    def _group(self, rows: list[Row], ready: Callable[[Row], Callable[[], Any]]) -> list[Row]:
        """Measure some rows in turns, and compare whole steps' outputs with eager's."""

        def within(row: Row, call: Callable[[], Any]) -> Any:
            with running(row.variant, self._tell):
                return call()

        alone = running(rows[0].variant, self._tell) if self.cuda and rows else nullcontext()
        wrap = (lambda row, call: call()) if self.cuda else within
        try:
            with alone:
                calls = {row.variant: wrap(row, partial(ready, row)) for row in rows}
                timed = {r.variant: partial(wrap, r, calls[r.variant]) for r in rows}
                seconds = self.seconds_each / (1 if rows and rows[0].whole else 4)
                found = machine.measure(timed, self.device, seconds) if rows else {}
                outputs = {
                    row.variant: wrap(row, calls[row.variant].logits)  # type: ignore[attr-defined]
                    for row in rows
                    if row.whole
                }
        except torch.OutOfMemoryError:
            return [replace(row, note="out of memory") for row in rows]
        except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
            words = " ".join(str(error).split())[:80]
            return [replace(row, note=f"failed: {words}") for row in rows]
        finally:
            calls = timed = {}
            self._clear()
        for row in rows:
            if row.variant == "eager" and row.whole:
                self.eager[row.what, row.batch] = outputs["eager"]
        return [self._found(row, found[row.variant], outputs.get(row.variant)) for row in rows]

    def _found(self, row: Row, found: machine.Measured, output: torch.Tensor | None) -> Row:
        difference, note = 0.0, row.note
        eager = self.eager.get((row.what, row.batch))
        if output is not None and eager is not None:
            difference = float((output - eager).norm() / eager.norm())
        if row.variant in ("ours", *EIGHT_BITS) and not self.cuda:
            note = "on a CPU `auto` is torch's own way"
        return replace(row, ms=found.ms, peak_gib=found.peak_gib, difference=difference, note=note)

    def _tell(self, pick: Any) -> None:
        if str(pick) not in self.result.picks:
            self.result.picks.append(str(pick))

    def _clear(self) -> None:
        torch._dynamo.reset()
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()


def _described(size: Size) -> dict[str, Any]:
    return {
        "grid": f"{size.grid}^3 voxels, patch {size.patch}^3: {size.tokens} tokens of 64",
        "vit": f"{size.depth} blocks, 4 heads, dropout 0.2",
        "block": f"width {size.donor['hidden_size']}, random weights, LoRA rank 8 on q and v",
        "precision": f"{str(size.dtype)[6:]} (naive: float32)",
    }


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("benchmarks/step.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--json", type=Path, help="the result (benchmarks/results/step-...json)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for all ({SECONDS:.0f})")
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="which ways (all)"
    )
    parser.add_argument("--plot", type=Path, metavar="JSON", help="only draw an earlier result")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not cuda:
        parser.error(
            "--device cuda: no CUDA device is visible here; --device cpu measures this CPU"
        )
    if options.plot and not options.plot.is_file():
        parser.error(f"--plot {options.plot}: no such file")
    return options


def main(argv: Sequence[str]) -> int:
    """Measure, write, print."""
    options = _options(argv)
    if options.plot:
        show.plot(Result.read(options.plot), options.plot.with_suffix(".png"))
        return 0
    bench = Bench(options)
    result = bench.run()
    name = f"step-{result.about['date']}-{machine.slug(bench.device)}.json"
    path = options.json or ROOT / "benchmarks" / "results" / name
    result.write(path)
    text = show.table(result)
    path.with_suffix(".txt").write_text(text + "\n")
    print(text)
    if importlib.util.find_spec("matplotlib"):
        show.plot(result, path.with_suffix(".png"))
    else:
        print(f"no matplotlib here: draw it with 'python -m benchmarks.step --plot {path}'")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
