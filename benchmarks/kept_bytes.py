"""How much does each operation of a training step keep for backward?

From the repository's root: `python -m benchmarks.kept_bytes`. Autograd is asked what it saves
(torch.autograd.graph.saved_tensors_hooks) in bfloat16, each memory counted once, parameters not.
Widths are those of a Llama-3.1-8B block and of the ViT; what is kept grows with the tokens alone,
so 64 of them are run, on a CPU if need be (Triton's interpreter), and 4 x 4096 shown.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from mvl_dist.kernels import (
    dice_bce,
    fp8_linear,
    layer_norm,
    layer_norm_linear,
    lora_linear,
    rms_norm,
    swiglu,
)
from mvl_dist.losses import dice_bce_loss
from mvl_dist.models.donors.llama_recomputed import recomputed
from tests.kernels.checking import Draw, kept_bytes
from tests.kernels.interpreter import DEVICE
from tests.kernels.test_lora_linear import peft_layers, random_parts

TOKENS, SHOWN = 64, 4 * 4096
HIDDEN, WIDE, VIT = 4096, 14336, 64
EPS = 1e-5

Kept = Callable[[], int]
Row = tuple[str, dict[str, Kept]]


def norms(draw: Draw) -> Iterator[Row]:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    x, residual = draw.normal(TOKENS, HIDDEN), draw.normal(TOKENS, HIDDEN)
    module = LlamaRMSNorm(HIDDEN, eps=EPS).to(DEVICE, torch.bfloat16).requires_grad_(False)
    weight = module.weight

    def keeps(way: Any) -> Kept:
        return lambda: kept_bytes(way, x, weight, EPS, residual, but=(weight,))

    yield (
        f"RMSNorm of x + residual, {HIDDEN}",
        {
            "transformers": lambda: kept_bytes(lambda a, b: module(a + b), x, residual),
            "torch": keeps(rms_norm.torch_fast),
            "ours": keeps(rms_norm.triton_fused),
        },
    )
    narrow, other = draw.normal(TOKENS, VIT), draw.normal(TOKENS, VIT)
    weights = draw.normal(VIT), draw.normal(VIT)

    def narrow_keeps(way: Any) -> Kept:
        return lambda: kept_bytes(way, narrow, *weights, EPS, other, but=weights)

    yield (
        f"LayerNorm of x + residual, {VIT}",
        {
            "torch": narrow_keeps(layer_norm.torch_fast),
            "ours": narrow_keeps(layer_norm.triton_fused),
        },
    )
    qkv = (narrow, *weights, EPS, draw.normal(3 * VIT, VIT), draw.normal(3 * VIT))
    parameters = tuple(one for one in qkv[1:] if isinstance(one, Tensor))
    ways = {"torch": layer_norm_linear.torch_fast, "ours": layer_norm_linear.triton_fused}
    yield (
        f"LayerNorm and packed q, k, v, {VIT}",
        {way: partial(kept_bytes, run, *qkv, but=parameters) for way, run in ways.items()},
    )


def linears(draw: Draw) -> Iterator[Row]:
    x = draw.normal(TOKENS, HIDDEN)
    parts = random_parts(draw, HIDDEN, (HIDDEN, 1024, 1024), (8, 0, 8))
    layers = peft_layers(parts, HIDDEN)
    tensors = tuple(tensor for part in parts for tensor in part[:4] if tensor is not None)

    def eager(x: Tensor) -> list[Tensor]:
        return [layer(x) for layer in layers]

    # A and B of all parts side by side: a constant, which 16384 tokens would make 256 times as big.
    constant = 16 * (HIDDEN + sum(len(part.weight) for part in parts)) * 2
    yield (
        "q, k, v with LoRA of rank 8 on q and v",
        {
            "PEFT": lambda: kept_bytes(eager, x, but=tuple(layers.parameters())),
            "ours": lambda: kept_bytes(lora_linear.torch_fast, x, parts, but=tensors) - constant,
        },
    )
    frozen = fp8_linear.freeze(parts[0].weight)
    plain = nn.Linear(HIDDEN, HIDDEN, False, DEVICE, torch.bfloat16).requires_grad_(False)
    yield (
        "a frozen linear without LoRA",
        {
            "torch": lambda: kept_bytes(plain, x, but=(plain.weight,)),
            "ours": lambda: kept_bytes(
                lora_linear.torch_fast, x, [lora_linear.Part(parts[0].weight)], but=tensors
            ),
            "ours, FP8": lambda: kept_bytes(
                fp8_linear.torch_fast, x, frozen, but=tuple(frozen.transposed)
            ),
        },
    )


def activations(draw: Draw) -> Iterator[Row]:
    gate, up, both = (draw.normal(TOKENS, width) for width in (WIDE, WIDE, 2 * WIDE))
    yield (
        f"SwiGLU, {WIDE}",
        {
            "transformers": lambda: kept_bytes(
                lambda gate, up: nn.functional.silu(gate) * up, gate, up
            ),
            "ours": lambda: kept_bytes(swiglu.triton_fused, both),
        },
    )
    x = draw.normal(TOKENS, HIDDEN)
    gate_up = random_parts(draw, HIDDEN, (WIDE, WIDE), (0, 0))
    gate_up = [part._replace(bias=None) for part in gate_up]
    down = [lora_linear.Part(draw.normal(HIDDEN, WIDE, trained=False))]
    weights = tuple(part.weight for part in (*gate_up, *down))

    def wide(x: Tensor) -> Tensor:
        return swiglu.triton_fused(lora_linear.torch_fast(x, gate_up, True))

    def mlp(x: Tensor) -> Tensor:
        return lora_linear.torch_fast(wide(x), down)[0]

    def mlp_again(x: Tensor) -> Tensor:
        return lora_linear.torch_fast(recomputed(wide, x), down)[0]

    yield (
        f"the block's MLP, {HIDDEN} to {WIDE} and back",
        {
            "ours": lambda: kept_bytes(mlp, x, but=weights),
            "--recompute-mlp": lambda: kept_bytes(mlp_again, x, but=weights),
        },
    )
    shape = (1, 1, 8 * TOKENS, 8, 8)  # a token is 8^3 voxels
    target = (torch.rand(shape, generator=draw.generator) < 0.1).to(DEVICE)
    logits = draw.normal(*shape)
    yield (
        "Dice + BCE, 8^3 voxels a token",
        {
            "torch": lambda: kept_bytes(dice_bce_loss, logits, target),
            "ours": lambda: kept_bytes(dice_bce.triton_fused, logits, target) - 12,
        },
    )


def main() -> None:
    print(f"Kept for backward, bfloat16, {SHOWN} tokens (batch 4 of 128^3 voxels, patch 8): MB")
    packages = ("torch", "triton", "transformers", "peft")
    print(f"device    {DEVICE}, {platform.system()}")
    print("versions  " + ", ".join(f"{name} {version(name)}" for name in packages))
    draw = Draw(0, torch.bfloat16)
    for make in (norms, linears, activations):
        for name, ways in make(draw):
            kept = {way: keep() * SHOWN / TOKENS / 1e6 for way, keep in ways.items()}
            print(f"\n{name}")
            for way, megabytes in kept.items():
                print(f"  {way:16}{megabytes:9.1f}")


if __name__ == "__main__":
    main()
