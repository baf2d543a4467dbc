"""Start trainings as a user does, and read what they left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
# What no message to a user may hold.
TRACES = ("Traceback", "ChildFailedError", "site-packages")


@dataclass(frozen=True)
class Done:
    """How a launch ended."""

    code: int
    output: str
    errors: str

    def one_line(self) -> str:
        """The one line of a user's mistake; nothing but launcher notes may stand beside it."""
        lines = [line for line in self.errors.splitlines() if line.startswith("error")]
        assert self.code != 0
        assert len(lines) == 1, self.errors
        assert not any(trace in self.errors + self.output for trace in TRACES), self.errors
        return lines[0]


def environment(**changes: str | None) -> dict[str, str]:
    """The environment of a launch: one thread a rank, no tracking server; None unsets a name."""
    kept = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "MVL_STORE")}
    wanted = {**kept, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **changes}
    return {name: value for name, value in wanted.items() if value is not None}


def deepspeed_config(folder: Path, stage: int | str) -> Path:
    """zeroN.json of the project (`3-offload`: zero3-offload.json) in float32, for CPU ranks."""
    settings = json.loads((REPO / "deepspeed_configs" / f"zero{stage}.json").read_text())
    settings["bf16"] = {"enabled": False}
    path = folder / f"zero{stage}-float32.json"
    path.write_text(json.dumps(settings))
    return path


def always_gathering(file: Path) -> Path:
    """ZeRO-3 that keeps no weights between forwards: small ones, as here, it would never part."""
    settings = json.loads(file.read_text())
    settings["zero_optimization"] |= {
        "stage3_param_persistence_threshold": 0,
        "stage3_max_live_parameters": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_prefetch_bucket_size": 0,
    }
    file.write_text(json.dumps(settings))
    return file


def command(
    arguments: Sequence[str],
    ranks: int = 2,
    deepspeed: Path | None = None,
    config: str = "cpu2",
    script: str = "train.py",
) -> list[str]:
    """`accelerate launch ... mvl_dist/train.py`, from the project's folder."""
    return [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", f"accelerate_configs/{config}.yaml", "--main_process_port", "0"),
        *(("--num_processes", str(ranks)) if config == "cpu2" else ()),
        *(("--deepspeed_config_file", str(deepspeed)) if deepspeed else ()),
        f"mvl_dist/{script}",
        *arguments,
    ]


def launch(
    arguments: Sequence[str],
    ranks: int = 2,
    deepspeed: Path | None = None,
    config: str = "cpu2",
    script: str = "train.py",
    **changes: str | None,
) -> Done:
    """Run a training to its end."""
    done = subprocess.run(
        command(arguments, ranks, deepspeed, config, script),
        cwd=REPO,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=600,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def run_folder(output: Path) -> Path:
    """The one run in an output folder."""
    (folder,) = (path.parent for path in output.glob("*/*/config.yaml"))
    return folder


def curve(output: Path, key: str = "train_loss") -> dict[int, float]:
    """A metric of the one run in an output folder, step -> value."""
    return curve_of(run_folder(output), key)


def curve_of(folder: Path, key: str = "train_loss") -> dict[int, float]:
    """A metric of a run's journal, step -> value; the last value where a step was repeated."""
    points = {}
    for line in (folder / "journal.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["op"] == "metrics" and key in entry["values"]:
            points[entry["step"]] = entry["values"][key]
    return points


def tags(output: Path) -> dict[str, str]:
    """Tags that the run set."""
    found: dict[str, str] = {}
    for line in (run_folder(output) / "journal.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["op"] == "tags":
            found |= entry["values"]
    return found


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until something is there; a process that ends before is an error."""
    deadline = time.monotonic() + 180
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
