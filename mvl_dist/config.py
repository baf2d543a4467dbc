"""What a run is: frozen dataclasses, presets, the command line, and the run's identity.

What belongs to the launcher (processes, nodes, ZeRO stage, precision) stands in
accelerate_configs/ and deepspeed_configs/; what belongs to the experiment stands here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro
import yaml

from mvl_dist.errors import UserError

Shape3D = tuple[int, int, int]


@dataclass(frozen=True)
class DataConfig:
    """Which cases a run sees, and how."""

    store: Path = field(default_factory=lambda: Path(os.environ.get("MVL_STORE", "store")))
    """Zarr store written by `mvl convert` (default: $MVL_STORE, else ./store)."""
    task: str = "Task01_BrainTumour"
    """Task in the store; `Task04`, `04` or `hippocampus` will do."""
    fold: int = 0
    """Which fifth of the cases validates, 0 to 4."""
    fraction: float = 1.0
    """Part of the training cases used (few-shot: 0.1, 0.3)."""
    grid: Shape3D = (128, 128, 128)
    """Voxels D, H, W of the model's input; the store must hold this grid."""
    channels: Literal["first", "all"] = "first"
    """Input channels: the first one (as the published code) or all that the task has."""
    target: Literal["binary", "labels", "regions"] = "binary"
    """Output regions: `binary` = all labels merged (as the paper scores), `labels` = one per label
    (as MSD scores), `regions` = those and the task's overlapping unions, e.g. whole tumour."""
    augmentation: Literal["paper", "none"] = "paper"
    """`paper`: rotation by up to 5 degrees and scaling by 0.9 to 1.1, on the device."""
    leave_out: tuple[str, ...] = ()
    """Cases to do without, e.g. damaged ones; the others stay in their parts of the split."""
    workers: int = 4
    """Loader processes a rank."""


@dataclass(frozen=True)
class DonorConfig:
    """Where the frozen language-model block comes from (medvisionllama)."""

    source: Annotated[str, tyro.conf.arg(name="donor")] = "llama-3.1-8b"
    """Known name, folder, .gguf or .pth file, or `random:SHAPE`; see `mvl weights list`."""
    layers: Annotated[tuple[int, ...] | Literal["all"], tyro.conf.arg(name="donor-layers")] = (-1,)
    """Layers of the donor, in order; negative numbers count from the last; or `all`."""


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters on the two mappers and inside the frozen block (paper section 3.2)."""

    rank: Annotated[int, tyro.conf.arg(name="lora-rank")] = 8
    """Rank of every adapter."""
    alpha: Annotated[float, tyro.conf.arg(name="lora-alpha")] = 16.0
    """Adapters are scaled by alpha / rank."""
    targets: Annotated[tuple[str, ...], tyro.conf.arg(name="lora-targets")] = ("q_proj", "v_proj")
    """Linears of the block that get an adapter; none leaves the block wholly frozen."""


@dataclass(frozen=True)
class ModelConfig:
    """The network. A model reads some of these (`reads` in its line of mvl_dist/models): the ViTs
    patch to dropout, those around a language model what follows, all others `features`."""

    name: Annotated[str, tyro.conf.arg(name="model")] = "medvisionllama"
    """A name of the registry in mvl_dist/models; `mvl models` shows all."""
    activation: Literal["sigmoid", "softmax"] = "sigmoid"
    """`sigmoid`: each region by itself; `softmax`: exclusive classes and a background class."""
    patch: Shape3D = (8, 8, 8)
    """Patch size in voxels D, H, W."""
    width: int = 64
    """Width of a token."""
    depth: int = 16
    """ViT blocks."""
    heads: int = 4
    """Attention heads of a ViT block."""
    mlp_ratio: int = 4
    """Width of a block's MLP over the token's width."""
    dropout: float = 0.2
    """Dropout in the ViT blocks."""
    llm_position: int = 16
    """ViT blocks before the language-model block: 16 = paper's Figure 1, 0 = published code."""
    train_block: bool = False
    """Train the language-model block itself, without LoRA in it: a control the paper lacks."""
    frozen_precision: Literal["model", "fp8", "int8"] = "model"
    """How the block's frozen linears are held: `model`: as all else; `fp8`: products in FP8 on
    Ada and Hopper; `int8`: half of bf16's memory on every GPU. Error: docs/kernels.md."""
    features: int = 0
    """First-stage features of unetpp, unetr, nnunet, missformer, transunet, swin_unet and
    swin_unetr; 0 is the published size."""
    donor: DonorConfig = field(default_factory=DonorConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)


@dataclass(frozen=True)
class OptimConfig:
    """How it is trained."""

    epochs: int = 200
    """Passes over the training cases."""
    batch_size: int = 4
    """Cases a step over all ranks together."""
    lr: float = 2e-3
    """Adam's learning rate."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up (a stated deviation from the paper, which has none)."""
    max_grad_norm: float = 0.0
    """Clip the gradient norm to this; 0 does not clip (as the paper)."""
    seed: int = 0
    """Seed of weights, order, augmentation and dropout."""
    validate_every: int = 1
    """Epochs between two validations and checkpoints."""


@dataclass(frozen=True)
class RunConfig:
    """One training run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    output: Path = field(default_factory=lambda: Path(os.environ.get("MVL_OUTPUT", "runs")))
    """Folder of runs and of the default MLflow database (default: $MVL_OUTPUT, else ./runs)."""
    experiment: str = "mvl-dist"
    """MLflow experiment."""
    resume: bool = True
    """Continue from the last checkpoint of the same run where there is one."""
    resume_from: Path | None = None
    """Folder of another run whose last checkpoint this one begins with, to train it longer or at
    another learning rate; counts in the run's identity."""
    beside: bool = False
    """Begin this run although one of its task, model and fold with other settings is unfinished;
    without it such a start is refused, for a changed flag would begin from nothing."""
    keep_checkpoints: int = 2
    """Checkpoints kept for resuming, the newest ones; the best model is kept beside them."""
    kernels: Literal["auto", "triton", "torch"] = "auto"
    """How fused operations run: `auto` times Triton's against torch's on the GPU and takes the
    faster (on a CPU torch's), `triton` refuses what its kernels cannot run; docs/kernels.md."""


# ---------------------------------------------------------------------------------------- presets


def paper() -> RunConfig:
    """The protocol of the paper's text (section 4.1), as far as it can be run.

    Adam at 2e-3, batch 4, 200 epochs, 128^3 voxels, 8^3 patches, LoRA rank 8, Dice + BCE, binary
    foreground, first channel. Augmentation is applied to every task: the text gives no size below
    which a task counts as 'limited'.
    """
    return RunConfig()


def official() -> RunConfig:
    """The published code's choices where they differ from the text, without its leaks.

    The block stands before positions and encoder, is wholly frozen, and the mappers have rank 4;
    100 epochs at learning rate 0.01 with batch 2 are its defaults.
    """
    return RunConfig(
        model=ModelConfig(llm_position=0, lora=LoRAConfig(rank=4, targets=())),
        optim=OptimConfig(epochs=100, batch_size=2, lr=0.01),
    )


def corrected() -> RunConfig:
    """The same training asked MSD's question: every channel in, one region for each label out.

    With `paper` these are the two tracks of a comparison. Both are scored on the scans' own grid
    and, in columns of their own, on the resampled one.
    """
    return RunConfig(data=DataConfig(channels="all", target="labels"))


def smoke() -> RunConfig:
    """A size for two CPU cores, through the same code: `make train`'s default."""
    return RunConfig(
        data=DataConfig(grid=(32, 32, 32), channels="all", target="labels", workers=0),
        model=ModelConfig(
            patch=(4, 4, 4),
            depth=4,
            dropout=0.0,
            llm_position=4,
            features=8,
            donor=DonorConfig(source="smollm2-135m"),
        ),
        optim=OptimConfig(epochs=6, warmup_epochs=0.5, max_grad_norm=1.0),
    )


PRESETS = {"paper": paper, "official": official, "corrected": corrected, "smoke": smoke}


# ----------------------------------------------------------------------------------- command line


def to_plain(config: Any) -> dict[str, Any]:
    """Nested plain data of a config: what is logged and saved beside a checkpoint."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (tuple, list)):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return plain(dataclasses.asdict(config))


def from_plain(plain: dict[str, Any], base: RunConfig, source: str) -> RunConfig:
    """Lay nested plain data over a config.

    Raises:
        UserError: a key that no config has, or a value of another type.
    """

    def overlay(config: Any, values: Any, where: str) -> Any:
        if not isinstance(values, dict):
            raise UserError(f"{source}: '{where}' must be a mapping, not {values!r}")
        kinds = get_type_hints(type(config))
        changes = {}
        for key, value in values.items():
            path = f"{where}.{key}" if where else str(key)
            if key not in kinds:
                raise UserError(f"{source}: unknown key '{path}'; known: {', '.join(kinds)}")
            if dataclasses.is_dataclass(kinds[key]):
                changes[key] = overlay(getattr(config, key), value, path)
            elif _fits(value, kinds[key]):
                changes[key] = _as(value, kinds[key])
            else:
                raise UserError(f"{source}: '{path}' takes {_words(kinds[key])}, not {value!r}")
        return dataclasses.replace(config, **changes)

    return overlay(base, plain, "")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value read from YAML or JSON is of a field's type."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in inner
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is tuple:
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis and value else inner
        if not isinstance(value, (list, tuple)):
            return False
        return not value or (len(value) == len(kinds) and all(map(_fits, value, kinds)))
    if kind is float:
        return type(value) in (int, float)
    return type(value) is (str if kind is Path else kind)


def _as(value: Any, kind: Any) -> Any:
    if get_origin(kind) in (Union, UnionType):
        kind = next(one for one in get_args(kind) if _fits(value, one))
    if isinstance(value, list):
        return tuple(value)
    return kind(value) if kind in (float, Path) else value


def _words(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(f"'{choice}'" for choice in inner)
    if origin in (Union, UnionType):
        return " or ".join(_words(one) for one in inner)
    if origin is tuple:
        many = "a list" if inner[-1] is Ellipsis else f"a list of {len(inner)}"
        return f"{many} {inner[0].__name__}"
    return f"a {kind.__name__}"


def load_yaml(path: Path, base: RunConfig) -> RunConfig:
    """Lay a YAML file over a config.

    Raises:
        UserError: the file is missing, not YAML, or has a key that no config has.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from error
    return from_plain(values or {}, base, str(path))


def parse(argv: Sequence[str], prog: str = "mvl train") -> RunConfig:
    """Read a run from the command line: preset, then `--config FILE`, then single flags.

    Raises:
        UserError: unknown preset, bad file, or values that no run can have.
        SystemExit: `--help`, or a flag that does not exist (tyro prints which).
    """

    # The base decides the other flags' defaults, so it is read before them.
    rest = list(argv)
    chosen: dict[str, str] = {}
    for flag in ("--preset", "--config"):
        for index, argument in enumerate(rest):
            name, equals, value = argument.partition("=")
            if name != flag:
                continue
            if not equals and index + 1 >= len(rest):
                raise UserError(f"{flag} needs a value")
            chosen[flag] = value if equals else rest[index + 1]
            del rest[index : index + (1 if equals else 2)]
            break
    preset = chosen.get("--preset", "paper")
    if preset not in PRESETS:
        raise UserError(f"--preset {preset}: known presets are {', '.join(PRESETS)}")
    base = PRESETS[preset]()
    if "--config" in chosen:
        base = load_yaml(Path(chosen["--config"]), base)
    config = tyro.cli(
        RunConfig,
        args=rest,
        default=base,
        prog=prog,
        description=f"Train one run. --preset {'|'.join(PRESETS)} and --config FILE.yaml set what "
        f"the flags below change (shown: preset {preset}).",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff),
    )
    check(config)
    return config


def check(config: RunConfig) -> None:
    """Refuse what no run can have, before anything slow starts.

    Raises:
        UserError: the first value found out of range.
    """
    data, model, optim = config.data, config.model, config.optim
    positive = {
        "--epochs": optim.epochs,
        "--batch-size": optim.batch_size,
        "--lr": optim.lr,
        "--validate-every": optim.validate_every,
        "--depth": model.depth,
        "--width": model.width,
        "--heads": model.heads,
        "--mlp-ratio": model.mlp_ratio,
        "--lora-rank": model.lora.rank,
        "--keep-checkpoints": config.keep_checkpoints,
        **{f"--grid (axis {axis})": size for axis, size in zip("DHW", data.grid, strict=True)},
        **{f"--patch (axis {axis})": size for axis, size in zip("DHW", model.patch, strict=True)},
    }
    for flag, value in positive.items():
        if value <= 0:
            raise UserError(f"{flag} is {value}; it must be above 0")
    if model.width % model.heads:
        raise UserError(f"--width {model.width} is not a multiple of --heads {model.heads}")
    if not 0 <= model.dropout < 1:
        raise UserError(f"--dropout {model.dropout} is out of range: 0 to below 1")
    if model.activation == "softmax" and data.target == "regions":
        raise UserError(
            "--activation softmax makes classes exclude each other, and the regions of --target "
            "regions overlap: use sigmoid, or --target labels"
        )
    if optim.warmup_epochs < 0 or optim.max_grad_norm < 0 or data.workers < 0 or model.features < 0:
        raise UserError(
            "--warmup-epochs, --max-grad-norm, --workers and --features must not be negative"
        )


def identity(
    config: RunConfig, reads: Collection[str], data_checksum: str, donor_checksum: str = ""
) -> str:
    """Short hash of what decides a run's result: two runs of one identity are the same run.

    Paths, worker counts and what is merely kept or logged do not count, nor do settings that the
    model never reads; the data and the donor count by their content.

    Args:
        reads: fields of ModelConfig that the model uses.
    """
    decides = _deciding(config, reads)
    decides["model"].pop("donor", None)
    decides["content"] = {"data": data_checksum, "donor": donor_checksum}
    return _hash(decides)


def request_key(config: RunConfig, reads: Collection[str]) -> str:
    """Short hash of what was asked for, known before data and donor are read.

    A study finds its runs by it: the donor counts by its name, the data by the task's name.
    """
    return _hash(_deciding(config, reads))


def described(config: RunConfig, reads: Collection[str]) -> dict[str, Any]:
    """Settings worth tracking, nested and plain: all but those that the model never reads."""
    plain = to_plain(config)
    kept = {"name", "activation", *reads}
    plain["model"] = {key: value for key, value in plain["model"].items() if key in kept}
    return plain


def _deciding(config: RunConfig, reads: Collection[str]) -> dict[str, Any]:
    plain = described(config, reads)
    decides = {key: plain[key] for key in ("data", "model", "optim")}
    del decides["data"]["store"], decides["data"]["workers"]
    # Newer than the first runs, which keep their names.
    if not config.data.leave_out:
        del decides["data"]["leave_out"]
    if config.model.frozen_precision == "model":
        decides["model"].pop("frozen_precision", None)
    if config.resume_from:
        decides["resume_from"] = config.resume_from.name
    return decides


def _hash(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]
