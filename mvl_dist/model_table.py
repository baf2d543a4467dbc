"""`mvl models`: what every model of the registry costs, and the paper's figures beside it."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import tyro

from mvl_dist.config import (
    DataConfig,
    DonorConfig,
    LoRAConfig,
    ModelConfig,
    RunConfig,
    Shape3D,
    check,
)
from mvl_dist.errors import UserError
from mvl_dist.models import MODELS, check_model_name
from mvl_dist.models.donors import open_source

if TYPE_CHECKING:
    import torch


NOTES = """\
trainable: ViT, head and mappers, or the whole network; LoRA inside the language model's block is
  counted apart, beside it. frozen: the block without embeddings, and the frozen mapper weights.
TFLOP: 10^12, a multiply-add is two, of one sample's forward; matrix products, convolutions and
  attention. training: with the backward, which computes no gradient of frozen weights.
GiB: most memory of a training step's activations, one sample in bf16, attention as a flash kernel
  does it; weights, their gradients and the optimizer's states are not in it.
ms: median forward of one sample, {timed}.
paper: Tables 4 and 5; its parameters contain visualisation heads that get no gradient. Its GFLOP
  are about 4,000 times too low: the linears of Llama-3.1-8B's block alone are
  2 x 218 M x 4,096 tokens = 1.79 TFLOP."""


@dataclass(frozen=True)
class ModelsArguments:
    """Show what every model costs: parameters, TFLOP, memory, ms, and the paper's figures.

    Counted without weights, with a block of Llama-3.1-8B's shapes. `trainable` is ViT, head and
    mappers (medvisionllama at rank 8: 1,198,720); what LoRA inside the block adds (106,496 for
    q_proj and v_proj) is shown apart, and in --json also their sum, `trainable_total`.
    """

    names: tuple[str, ...] = ()
    """Models to show; all if none is given."""
    json: bool = False
    """Print a list of objects, for other programs."""
    time: bool | None = None
    """Time a forward here, on the GPU in bf16 or else on the CPU in float32, where it takes minutes
    at 128^3 (default: True for the table, False for --json)."""
    grid: Shape3D = (128, 128, 128)
    """Voxels D, H, W of the input."""
    patch: Shape3D = (8, 8, 8)
    """Patch size of the ViTs in voxels D, H, W."""
    channels: int = 1
    """Input channels."""
    regions: int = 1
    """Output regions."""
    features: int = 0
    """First-stage features of the convolutional and Swin networks; 0 is the published size."""
    donor_shape: str = "llama-3.1-8b"
    """Shape of the language model: a known name, or the path of a config.json."""
    lora: LoRAConfig = field(default_factory=LoRAConfig)


@dataclass(frozen=True)
class Costs:
    """One model's figures.

    Attributes:
        trainable: without LoRA in the block.
        tflop: of a sample's forward.
        training_tflop: of a sample's forward and backward.
        peak_activation_bytes: of a training step of one sample in bf16.
        ms: of a sample's forward; None: not timed.
        paper: see `measure.paper.PaperFigures`; None: no row in the paper's Tables 4 and 5.
    """

    name: str
    trainable: int
    trainable_lora_in_block: int
    trainable_total: int
    frozen: int
    tflop: float
    training_tflop: float
    peak_activation_bytes: int
    ms: float | None
    paper: dict[str, float | None] | None


def main(argv: Sequence[str]) -> int:
    """Entry of `mvl models`; 1 if a model could not be built, and its line says why.

    Raises:
        UserError: an impossible argument, or not one of the models could be built.
    """
    arguments = tyro.cli(
        ModelsArguments,
        args=list(argv),
        prog="mvl models",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    names = arguments.names or tuple(MODELS)
    check_arguments(arguments, names)
    timed = not arguments.json if arguments.time is None else arguments.time
    found: dict[str, Costs | UserError] = {}
    for name in names:
        try:
            found[name] = costs(name, arguments, timed)
        except UserError as error:
            found[name] = error
    errors = [one for one in found.values() if isinstance(one, UserError)]
    if len(errors) == len(found):
        raise errors[0]
    if arguments.json:
        print(json.dumps([plain(name, one) for name, one in found.items()], indent=2))
    else:
        print(table(found))
        print()
        print(NOTES.format(timed=where()[2] if timed else "not timed (--time False)"))
    return int(bool(errors))


def check_arguments(arguments: ModelsArguments, names: Sequence[str]) -> None:
    """Refuse what no model can have, before torch is imported.

    Raises:
        UserError: the first value that is wrong.
    """
    for name in names:
        check_model_name(name)
        check(RunConfig(data=DataConfig(grid=arguments.grid), model=config_of(name, arguments)))
    for flag, value in {"--channels": arguments.channels, "--regions": arguments.regions}.items():
        if value < 1:
            raise UserError(f"{flag} is {value}; it must be above 0")
    open_source(f"random:{arguments.donor_shape}")


def config_of(name: str, arguments: ModelsArguments) -> ModelConfig:
    """The paper's network but for what the arguments change."""
    return ModelConfig(
        name=name,
        patch=arguments.patch,
        features=arguments.features,
        lora=arguments.lora,
        donor=DonorConfig(source=f"random:{arguments.donor_shape}"),
    )


def where() -> tuple[torch.device, torch.dtype, str]:
    """Device and dtype of the timing on this machine, and both in words."""
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        return torch.device("cuda"), torch.bfloat16, f"{name}, bf16"
    return torch.device("cpu"), torch.float32, f"{torch.get_num_threads()} CPU threads, float32"


def costs(name: str, arguments: ModelsArguments, timed: bool) -> Costs:
    """Build a model without weights, and count; then draw weights and time it, if asked to.

    Raises:
        UserError: the model cannot be built from these arguments.
    """
    import torch

    from mvl_dist.models.count import parameter_report
    from mvl_dist.models.empty import build_empty
    from mvl_dist.models.measure.flop import tflop_per_sample, training_tflop_per_sample
    from mvl_dist.models.measure.memory import peak_activation_bytes
    from mvl_dist.models.measure.paper import PAPER_FIGURES
    from mvl_dist.models.measure.timing import milliseconds_per_sample

    config = config_of(name, arguments)
    model = build_empty(config, arguments.channels, arguments.regions, arguments.grid)
    report = parameter_report(model)
    image = (arguments.channels, arguments.grid)
    paper = PAPER_FIGURES.get(name)
    tflop = tflop_per_sample(model, *image)
    training_tflop = training_tflop_per_sample(model, *image)
    peak = peak_activation_bytes(model, *image, torch.bfloat16)
    ms = None
    if timed:
        device, dtype, words = where()
        print(f"timing {name} ({tflop:.2f} TFLOP) on {words}", file=sys.stderr, flush=True)
        ms = milliseconds_per_sample(model, *image, device, dtype)
    return Costs(
        name=name,
        trainable=report["trainable"] - report["trainable_llm"],
        trainable_lora_in_block=report["trainable_llm"],
        trainable_total=report["trainable"],
        frozen=report["frozen"],
        tflop=tflop,
        training_tflop=training_tflop,
        peak_activation_bytes=peak,
        ms=ms,
        paper=dataclasses.asdict(paper) if paper else None,
    )


def plain(name: str, one: Costs | UserError) -> dict[str, Any]:
    """A model as --json prints it: its figures, or `error`."""
    if isinstance(one, UserError):
        return {"name": name, "error": str(one)}
    return dataclasses.asdict(one)


HEADINGS = ("trainable", "LoRA in block", "frozen", "TFLOP", "training", "GiB", "ms")
PAPER_HEADINGS = ("paper: M", "trainable M", "GFLOP", "ms")


def cells(one: Costs) -> list[str]:
    """A model's figures under `HEADINGS` and `PAPER_HEADINGS`, '-' where there is none."""

    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:,.{digits}f}"

    paper = one.paper or {}
    return [
        number(one.trainable, 0),
        number(one.trainable_lora_in_block or None, 0),
        number(one.frozen or None, 0),
        number(one.tflop, 3),
        number(one.training_tflop, 3),
        number(one.peak_activation_bytes / 2**30, 2),
        number(one.ms, 2 if (one.ms or 0) < 100 else 0),
        number(paper.get("parameters_m"), 2),
        number(paper.get("trainable_m"), 2),
        number(paper.get("gflop"), 2),
        number(paper.get("ms"), 2),
    ]


def table(found: dict[str, Costs | UserError]) -> str:
    """A line a model; one that could not be built has the reason in its line."""
    head = ["model", *HEADINGS, *PAPER_HEADINGS]
    rows = {name: [name, *cells(one)] for name, one in found.items() if isinstance(one, Costs)}
    widths = [max(map(len, column)) for column in zip(head, *rows.values(), strict=True)]
    widths[0] = max(map(len, ["model", *found]))
    lines = []
    for name, row in [("", head), *((name, rows.get(name)) for name in found)]:
        if row is None:
            lines.append(f"{name:{widths[0]}}  {found[name]}")
            continue
        first, *rest = row
        figures = [f"{text:>{width}}" for text, width in zip(rest, widths[1:], strict=True)]
        ours, paper = figures[: len(HEADINGS)], figures[len(HEADINGS) :]
        lines.append(f"{first:{widths[0]}}  {'  '.join(ours)}  | {'  '.join(paper)}")
    return "\n".join(lines)
