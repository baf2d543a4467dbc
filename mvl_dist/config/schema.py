"""What a run is: frozen dataclasses, and which values no run can have.

What belongs to the launcher (processes, nodes, ZeRO stage, precision) stands in
accelerate_configs/ and deepspeed_configs/; what belongs to the experiment stands here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mvl_dist.config.place_flags import FolderFlag, StoreFlag
from mvl_dist.errors import UserError
from mvl_dist.place import local_folder, store_place

Shape3D = tuple[int, int, int]
# Fields of DataConfig that only `resolution` spaced reads.
CROP_SETTINGS = ("foreground", "patches_per_case", "overlap")


@dataclass(frozen=True)
class DataConfig:
    """Which cases a run sees, and how."""

    store: StoreFlag = field(
        default_factory=lambda: store_place(os.environ.get("MVL_STORE", "store"))
    )
    """Zarr store written by `mvl convert`, a folder or an address (s3://, gs://, http://, https://);
    default: $MVL_STORE, else ./store."""
    task: str = "Task01_BrainTumour"
    """Task in the store; `Task04`, `04` or `hippocampus` will do."""
    fold: int = 0
    """Which fifth of the cases validates, 0 to 4."""
    fraction: float = 1.0
    """Part of the training cases used (few-shot: 0.1, 0.3)."""
    grid: Shape3D = (128, 128, 128)
    """Voxels D, H, W of the model's input: with `--resolution grid` what the store holds of a
    scan, with `spaced` the crop that the model sees."""
    resolution: Literal["grid", "spaced"] = "grid"
    """`grid`: whole scans, resampled to --grid; `spaced`: crops at the task's own spacing, and a
    sliding window over whole scans."""
    foreground: float = 1 / 3
    """Share of a batch's crops that are laid around a foreground voxel (spaced)."""
    patches_per_case: int = 1
    """Crops of each case in an epoch (spaced)."""
    overlap: float = 0.5
    """Part of a window that the next one covers again (spaced)."""
    channels: Literal["first", "all"] = "first"
    """Input channels: the first one (as the published code) or all that the task has."""
    target: Literal["binary", "labels", "regions"] = "binary"
    """Output regions: `binary` = all labels merged (as the paper scores), `labels` = one per label
    (as MSD scores), `regions` = those and the task's overlapping unions, e.g. whole tumour."""
    augmentation: Literal["paper", "strong", "none"] = "paper"
    """`paper`: rotation by up to 5 degrees and scaling by 0.9 to 1.1; `strong`: nnU-Net's default
    set, mirrored where the task's anatomy allows. On the device."""
    leave_out: tuple[str, ...] = ()
    """Cases to do without, e.g. damaged ones; the others stay in their parts of the split."""
    workers: int = 4
    """Loader processes a rank."""
    cache_gb: float | Literal["auto"] = "auto"
    """Decoded cases that a node keeps for all its processes, GB, in /dev/shm (where that is too
    small, in $TMPDIR); `auto`: at most half of what is free; 0: none."""


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
    output: FolderFlag = field(
        default_factory=lambda: local_folder(os.environ.get("MVL_OUTPUT", "runs"))
    )
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
    compile: bool = False
    """Run what lies around the kernels through torch.compile: the first steps take minutes, results
    differ by rounding; ZeRO-0 to 2."""
    recompute_mlp: bool = False
    """Compute the block's MLP again in backward instead of keeping its wide activations: 0.8 of the
    kernels' 0.9 GB less at batch 4 of 128^3 voxels around Llama-3.1-8B, for a fifth more work."""


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
        "--patches-per-case": data.patches_per_case,
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
    _check_crops(data)
    if model.activation == "softmax" and data.target == "regions":
        raise UserError(
            "--activation softmax makes classes exclude each other, and the regions of --target "
            "regions overlap: use sigmoid, or --target labels"
        )
    if data.cache_gb != "auto" and not data.cache_gb >= 0:
        raise UserError(f"--cache-gb {data.cache_gb}: a number of GB, 0 for no cache, or auto")
    if optim.warmup_epochs < 0 or optim.max_grad_norm < 0 or data.workers < 0 or model.features < 0:
        raise UserError(
            "--warmup-epochs, --max-grad-norm, --workers and --features must not be negative"
        )


def _check_crops(data: DataConfig) -> None:
    if not 0 <= data.foreground <= 1:
        raise UserError(f"--foreground {data.foreground:g} is out of range: 0 to 1")
    if not 0 <= data.overlap < 1:
        raise UserError(f"--overlap {data.overlap:g} is out of range: 0 to below 1")
    if data.resolution == "grid":
        default = DataConfig()
        for name in CROP_SETTINGS:
            if getattr(data, name) != getattr(default, name):
                raise UserError(
                    f"--{name.replace('_', '-')} is for crops, and --resolution grid has none: "
                    "leave it out, or add --resolution spaced"
                )
