"""One training step, in the ways in which it could be run.

    naive     the published code's way: float32, attention with stored scores
    eager     bf16, scaled_dot_product_attention: today's plain PyTorch
    compile   the same through torch.compile
    liger     eager, with Liger-Kernel's RMSNorm and SwiGLU in the frozen block
    ours      mvl_dist.kernels under the policy `auto`
    fp8       ours, the frozen block's products in FP8 (`--frozen-precision fp8`)
    int8      ours, the frozen block's weights held in int8

All run the project's own model with the same weights, so what differs is how; the last two round
the block's weights, so that their results differ by more than rounding of sums.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from mvl_dist.errors import UserError
from mvl_dist.kernels import dispatch
from mvl_dist.losses import dice_bce_loss
from mvl_dist.models import build_model, frozen
from mvl_dist.models.donors import Donor
from mvl_dist.models.donors.llama import empty_block
from mvl_dist.models.donors.sources import KNOWN_SHAPES

EIGHT_BITS = ("fp8", "int8")
VARIANTS = ("naive", "eager", "compile", "liger", "ours", *EIGHT_BITS)


@dataclass(frozen=True)
class Size:
    """What is trained: voxels along an axis, patch, ViT blocks, and the donor's shape."""

    grid: int
    patch: int
    depth: int
    donor: dict[str, Any]
    dtype: torch.dtype

    @property
    def tokens(self) -> int:
        """Tokens of a sample."""
        return (self.grid // self.patch) ** 3


TINY_DONOR = {
    **{"model_type": "llama", "hidden_size": 64, "intermediate_size": 192},
    **{"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2},
}
PAPER = Size(128, 8, 16, KNOWN_SHAPES["llama-3.1-8b"], torch.bfloat16)
ON_A_CPU = Size(24, 4, 4, KNOWN_SHAPES["smollm2-135m"], torch.float32)
TINY = Size(8, 2, 1, TINY_DONOR, torch.float32)


class StoredScores(TorchFunctionMode):
    """Attention as the published code writes it: all T x T scores, K and V repeated."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return stored_scores(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def stored_scores(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout_p: float = 0.0, **options: Any
) -> torch.Tensor:
    """Softmax attention without a mask; q (B, H, T, D), k and v (B, H or fewer, T, D)."""
    if options.get("is_causal") or options.get("attn_mask") is not None:
        raise ValueError("the models here attend without a mask")
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(-2, -1) * (options.get("scale") or q.shape[-1] ** -0.5)
    return F.dropout(scores.softmax(-1), dropout_p) @ v


def model_of(
    name: str, size: Size, device: torch.device, dtype: torch.dtype, precision: str = "model"
) -> nn.Module:
    """ViT-Baseline or MedVisionLlama with the paper's settings and random weights, on a device.

    Args:
        precision: how the language model's frozen linears are held: model, fp8 or int8.
    """
    torch.manual_seed(0)
    config: Any = SimpleNamespace(
        **{"name": name, "patch": (size.patch,) * 3, "width": 64, "depth": size.depth},
        **{"heads": 4, "mlp_ratio": 4, "dropout": 0.2, "llm_position": size.depth},
        **{"train_block": False, "frozen_precision": precision},
        lora=SimpleNamespace(rank=8, alpha=16.0, targets=("q_proj", "v_proj")),
    )
    donor = random_donor(size.donor, device) if name == "medvisionllama" else None
    with torch.device(device):
        model = build_model(config, 1, 1, (size.grid,) * 3, donor)
    return model.to(dtype).train()


def random_donor(shape: dict[str, Any], device: torch.device) -> Donor:
    """A frozen block of a language model's shape, drawn on the device itself, which is quick."""
    block = empty_block(shape, 1).to_empty(device=device).requires_grad_(False)
    for parameter in block.parameters():
        if parameter.ndim == 1:
            parameter.fill_(1)
        else:
            parameter.normal_(0, 0.02)
    return Donor(block, shape["hidden_size"], "random", (0,), shape["model_type"], "")


def liger_in(model: nn.Module) -> None:
    """Give the frozen block Liger-Kernel's RMSNorm and SwiGLU, in place; parameters stay."""
    from liger_kernel.transformers.rms_norm import LigerRMSNorm
    from liger_kernel.transformers.swiglu import LigerSwiGLUMLP

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ == "LlamaRMSNorm":
                norm = LigerRMSNorm(child.weight.numel(), eps=child.variance_epsilon)
                norm.weight, norm.in_place = child.weight, False
                setattr(module, name, norm)
        if type(module).__name__ == "LlamaMLP":
            module.forward = LigerSwiGLUMLP.forward.__get__(module)


def missing(variant: str, device: torch.device) -> str:
    """Why a variant cannot be measured here, '' if it can."""
    if variant == "fp8":
        try:
            frozen.check_device(variant, device)
        except UserError as error:
            return str(error)
    if variant != "liger":
        return ""
    if importlib.util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed"
    return "" if device.type == "cuda" else "Liger's kernels are Triton's: not on a CPU"


@contextlib.contextmanager
def running(variant: str, tell: Callable[[Any], None]) -> Iterator[None]:
    """What is switched on while a variant runs; outside, a process runs torch's operations."""
    on: Any = contextlib.nullcontext()
    if variant == "ours" or variant in EIGHT_BITS:
        on = dispatch.using("auto", tell=tell)
    elif variant == "naive":
        on = StoredScores()
    with on:
        yield


class Adam:
    """torch's Adam over float32 copies of the trained weights, as mixed precision needs them."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.copies = [p.detach().float().requires_grad_() for p in self.weights]
        # Not to move: every variant's outputs are compared after its steps.
        self.adam = torch.optim.Adam(self.copies, lr=0.0)

    def step(self) -> None:
        """Update the weights from their gradients, and drop those."""
        for weight, copy in zip(self.weights, self.copies, strict=True):
            assert weight.grad is not None
            copy.grad = weight.grad.float()
            weight.grad = None
        self.adam.step()
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.copies)


class Step:
    """A training step of one variant: forward, loss, backward, Adam."""

    def __init__(
        self, variant: str, name: str, size: Size, batch: int, device: torch.device
    ) -> None:
        dtype = torch.float32 if variant == "naive" else size.dtype
        precision = variant if variant in EIGHT_BITS else "model"
        self.model = model_of(name, size, device, dtype, precision)
        if variant == "liger":
            liger_in(self.model)
        self.adam = Adam(self.model)
        shape = (batch, 1, *(size.grid,) * 3)
        generator = torch.Generator(device).manual_seed(0)
        self.image = torch.randn(shape, device=device, generator=generator).to(dtype)
        self.target = (torch.rand(shape, device=device, generator=generator) < 0.1).to(dtype)
        self.forward = self._loss
        if variant == "compile":
            self.forward = torch.compile(self._loss, dynamic=False)

    def _loss(self, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return dice_bce_loss(self.model(image), target)

    def __call__(self) -> None:
        """One step."""
        self.forward(self.image, self.target).backward()
        self.adam.step()

    @torch.no_grad()
    def logits(self) -> torch.Tensor:
        """What the model says without dropout, in float32 on the CPU."""
        self.model.eval()
        return self.model(self.image).float().cpu()
