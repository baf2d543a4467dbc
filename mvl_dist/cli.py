"""`mvl`: one console command; each subcommand is a module that is imported when it is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from mvl_dist import __version__
from mvl_dist.errors import UserError

# name -> (module with main(argv) -> int, what it is for), in the order of a user's day.
COMMANDS = {
    "doctor": ("mvl_dist.doctor", "what this machine has, and what the main job still needs"),
    "phantom": ("data_prep.phantom", "make two small MSD-format tasks to try everything with"),
    "unpack": ("data_prep.unpack", "unpack MSD archives"),
    "convert": ("data_prep.convert", "MSD folders into a Zarr store"),
    "verify": ("data_prep.verify", "prove a store whole"),
    "migrate": ("data_prep.migrate", "bring an older store to this version"),
    "weights": ("mvl_dist.weights", "extract a frozen block from a language model; list donors"),
    "models": (
        "mvl_dist.model_table",
        "every model: parameters, TFLOP, memory, ms, and the paper's figures",
    ),
    "plan-memory": ("mvl_dist.plan_memory", "GiB a GPU needs for a run, under every ZeRO stage"),
    "train": ("mvl_dist.launch", "train one run under accelerate launch, and test it"),
    "study": ("mvl_dist.study.command", "a grid of runs: list, plan, status, next, run"),
    "evaluate": ("mvl_dist.evaluate", "score a trained run on its test or validation cases"),
    "predict": ("mvl_dist.predict", "segment new scans with a trained run, or its folds averaged"),
    "export": ("mvl_dist.export", "a trained model as a small folder, or as a MONAI bundle"),
    "report": ("mvl_dist.report.command", "every table and figure of the paper beside ours"),
    "consolidate": ("mvl_dist.consolidate", "a run's last checkpoint as one safetensors file"),
    "nnunet": ("data_prep.nnunet.command", "the published nnU-Net: export, train, import"),
    "sync": ("mvl_dist.sync", "send a run's journal to MLflow"),
}


def usage() -> str:
    """The text of `mvl --help`."""
    lines = [
        f"mvl {__version__}: train and judge 3D segmentation with a frozen language-model block"
    ]
    lines += ["", "usage: mvl COMMAND [options]      mvl COMMAND --help", ""]
    lines += [f"  {name:13}{purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; a user's mistake ends as one line and status 1."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"mvl {__version__}")
        return 0
    command, rest = arguments[0], arguments[1:]
    try:
        if command not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(command, COMMANDS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "see 'mvl --help'"
            raise UserError(f"no command '{command}': {hint}")
        return int(importlib.import_module(COMMANDS[command][0]).main(rest) or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # mvl ... | head
        sys.stderr.close()
        return 141


if __name__ == "__main__":
    sys.exit(main())
