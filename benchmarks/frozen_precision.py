"""What does a frozen block in FP8 or int8 cost in Dice, on real data?

From the repository's root, on a CPU (six trainings of about two minutes of a core each):

    mvl convert --msd-root DATA --tasks Task04 --grid 32 32 32 --store STORE
    python -m benchmarks.frozen_precision STORE OUTPUT

MedVisionLlama around SmolLM2's last block (preset smoke) is trained on a third of Task04's training
cases in each precision from two seeds; what the seeds differ by is the yardstick. The weights that
were trained in the model's precision are scored again with their block switched to eight bits, in
float32 and in bfloat16; with the block's output at 0 they show whether Dice would see an error of
it. All are scored on the 20 held-out cases, on their own grids. Started again,
it keeps the trainings that OUTPUT holds.
"""

from __future__ import annotations

import csv
import math
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from mvl_dist import runs
from mvl_dist.evaluation import evaluate_cases
from mvl_dist.plan import make_plan
from mvl_dist.statistics import compare, per_case

EPOCHS, BATCH_SIZE, FRACTION = 8, 2, 0.3
Precision = Literal["model", "fp8", "int8"]
PRECISIONS: tuple[Precision, ...] = ("model", "fp8", "int8")
SEEDS = (0, 1)
TRAININGS = tuple((precision, seed) for precision in PRECISIONS for seed in SEEDS)

Dice = Mapping[str, float]


def begin(store: Path, output: Path, precision: str, seed: int) -> subprocess.Popen[bytes]:
    """Start a training in a process of its own, one thread."""
    flags = {
        "--preset": "smoke",
        "--store": store,
        "--task": "Task04",
        "--target": "binary",
        "--fraction": FRACTION,
        "--epochs": EPOCHS,
        "--validate-every": EPOCHS,
        "--batch-size": BATCH_SIZE,
        "--seed": seed,
        "--frozen-precision": precision,
        "--output": output,
    }
    words = [str(word) for pair in flags.items() for word in pair]
    command = [sys.executable, "-m", "mvl_dist.cli", "train", "--launcher", "cpu1", *words]
    with (output / "log.txt").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def train(store: Path, output: Path) -> dict[tuple[Precision, int], Path]:
    """The run folders of `TRAININGS`, trained side by side."""
    processes = {}
    for precision, seed in TRAININGS:
        folder = output / f"{precision}-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.glob("*/*/test_cases.csv")):
            processes[folder] = begin(store, folder, precision, seed)
    for folder, code in [(folder, process.wait()) for folder, process in processes.items()]:
        if code:
            raise SystemExit(f"{folder}: {(folder / 'log.txt').read_text()[-2000:]}")
    return {
        (precision, seed): next((output / f"{precision}-{seed}").glob("Task04*/medvisionllama-*"))
        for precision, seed in TRAININGS
    }


Rows = list[dict[str, Any]]


def scores(folder: Path) -> Rows:
    """A run's test cases as its training left them."""
    with (folder / "test_cases.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def dice(rows: Rows) -> Dice:
    """By case, averaged over the seeds among the rows."""
    return per_case(rows, "dice", "foreground")


def switched(
    folder: Path, precision: Precision, dtype: torch.dtype = torch.float32, silent: bool = False
) -> Rows:
    """A trained run's test cases with its block held in another precision, or its output at 0."""
    config, _ = runs.about_run(folder)
    config = replace(config, model=replace(config.model, frozen_precision=precision))
    plan = make_plan(config)
    model = runs.build(plan.recipe, runs.load_run_donor(plan.config))
    runs.with_best_weights(folder, model).to(dtype)
    if silent:
        model.get_submodule("llm").register_forward_hook(
            lambda _, __, output: torch.zeros_like(output)
        )
    return evaluate_cases(model, plan, plan.split.test)


def show(name: str, rows: Rows, base: Rows) -> None:
    values = dice(rows)
    told = f"  {name:34}{sum(values.values()) / len(values):7.4f}"
    if rows is not base:
        paired = compare(dice(base), values)
        low, high = paired.interval or (math.nan, math.nan)
        told += (
            f"  {paired.median_difference:+8.4f}  [{low:+.4f}, {high:+.4f}]  "
            f"{paired.wins:2d}/{paired.losses:2d}  {paired.wilcoxon_p:.4f}"
        )
    print(told, flush=True)


def main(store: Path, output: Path) -> None:
    packages = ("torch", "transformers", "peft", "deepspeed")
    print(f"CPU, {platform.machine()}, one thread a training; {time.strftime('%Y-%m-%d')}")
    print("versions  " + ", ".join(f"{name} {version(name)}" for name in packages))
    print(
        f"Task04, 32^3, foreground, fold 0, fraction {FRACTION}, {EPOCHS} epochs, batch "
        f"{BATCH_SIZE}, SmolLM2's last block, trained in float32",
        flush=True,
    )
    folders = train(store, output)
    trained = {training: scores(folder) for training, folder in folders.items()}
    print(
        f"{len(dice(trained['model', 0]))} test cases: mean Dice; median of the paired differences "
        "from the 'model' of the\nsame seed, 95 % interval, cases better/worse, p of the "
        "signed-rank test\n"
    )
    print("trained and scored in")
    for precision in PRECISIONS:
        for seed in SEEDS:
            show(f"{precision}, seed {seed}", trained[precision, seed], trained["model", seed])
    both = {name: [row for seed in SEEDS for row in trained[name, seed]] for name in PRECISIONS}
    for precision in PRECISIONS:
        show(f"{precision}, both seeds averaged", both[precision], both["model"])
    show("model, seed 1, from seed 0", trained["model", 1], trained["model", 0])
    print("\ntrained in 'model', the block switched to")
    for dtype in (torch.float32, torch.bfloat16):
        for precision in PRECISIONS:
            rows: Rows = []
            for seed in SEEDS:
                rows += switched(folders["model", seed], precision, dtype)
            show(f"{precision}, {str(dtype).removeprefix('torch.')}, both", rows, both["model"])
    without = [
        row for seed in SEEDS for row in switched(folders["model", seed], "model", silent=True)
    ]
    show("output at 0, float32, both", without, both["model"])


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
