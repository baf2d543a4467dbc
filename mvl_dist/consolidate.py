"""`mvl consolidate RUN`: the last checkpoint's shards as one plain safetensors file.

`best.safetensors` is plain already; this is for going on elsewhere from where a training stands.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mvl_dist import checkpoint
from mvl_dist.errors import UserError
from mvl_dist.files import PARTIAL


@dataclass(frozen=True)
class ConsolidateArguments:
    """Write the last checkpoint of a run as one safetensors file in float32."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, as printed when it began."""
    output: Path | None = None
    """File to write (default: last.safetensors in the run's folder)."""
    with_donor: bool = False
    """Put the frozen language-model block in too, so that the file stands alone."""


def main(argv: Sequence[str]) -> int:
    """Entry of `mvl consolidate`."""
    arguments = tyro.cli(
        ConsolidateArguments,
        args=list(argv),
        prog="mvl consolidate",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    output = arguments.output or arguments.run / "last.safetensors"
    count, step = consolidate(arguments.run, output, arguments.with_donor)
    print(f"{output}: {count} tensors of step {step}, {output.stat().st_size / 1e6:.1f} MB")
    return 0


def consolidate(run: Path, output: Path, with_donor: bool = False) -> tuple[int, int]:
    """Put the shards of a run's last checkpoint together; needs no ranks.

    Returns:
        Number of tensors, and the step that they are from.

    Raises:
        UserError: no run's folder, no checkpoint in it, a damaged one, a donor in eight bits, or no
            room for the file.
    """
    from mvl_dist import reshard, runs
    from mvl_dist.models.count import donor_parameter_names

    about = checkpoint.last_checkpoint(run)
    if about is None:
        raise UserError(f"{run}: no checkpoint there; a training prints its folder when it begins")
    held = runs.about_run(run)[0].model.frozen_precision
    if with_donor and held != "model":
        raise UserError(
            f"--with-donor: {run} holds its block in {held}, which means nothing without its "
            "factors: leave it out, or use 'mvl export --with-donor', which copies the donor"
        )
    model = runs.untrained(run)
    trainable = {n: p.shape for n, p in model.named_parameters() if p.requires_grad}
    leave_out = set() if with_donor else donor_parameter_names(model)
    folder = run / checkpoint.FOLDER
    universal = folder / f"{PARTIAL}consolidate"
    shutil.rmtree(universal, ignore_errors=True)
    try:
        reshard.to_universal(folder / about["tag"], list(trainable), universal)
        weights = {
            name: reshard.read_tensor(universal, name, reshard.WEIGHT, shape)
            for name, shape in trainable.items()
        }
        weights |= reshard.read_buffers(universal)
    except (OSError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise UserError(
            f"{folder / about['tag']} cannot be put together ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]})"
        ) from error
    finally:
        shutil.rmtree(universal, ignore_errors=True)
    for name, parameter in model.named_parameters():
        if name not in weights and name not in leave_out:
            weights[name] = parameter.detach().contiguous()
    step = int(about["position"]["step"])
    checkpoint.write_safetensors(output, weights, {"step": str(step), "dtype": "float32"})
    return len(weights), step
