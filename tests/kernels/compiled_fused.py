"""Every fused kernel compiled for A100 and H100, as it is launched in a training step.

    python -m tests.kernels.compiled_fused      # one JSON line a kernel, type and GPU

The sizes are those of MedVisionLlama with a Llama-3.1-8B block: width 4096 in the block, 64 in the
ViT, LoRA of rank 8 on q and v.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from mvl_dist.kernels import (
    _triton_dice_bce,
    _triton_fp8,
    _triton_lora_linear,
    _triton_norm,
    _triton_norm_linear,
    _triton_swiglu,
)
from tests.kernels.compiling import compile_for, usage

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Case(NamedTuple):
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    launch: dict[str, int]


def norms(kind: str, capability: int) -> Iterator[tuple[str, Case]]:
    p = f"*{kind}"
    for name, width, centre in (("rms_norm", 4096, False), ("layer_norm", 64, True)):
        tiles = _triton_norm.tiling(width)
        launch = {"num_warps": tiles.pop("num_warps")}
        types = dict.fromkeys(["M", "K", "x_stride", "residual_stride"], "i32:16") | {"eps": "fp32"}
        types |= dict.fromkeys(["x", "residual", "weight", "bias", "y", "s"], p)
        constants = {"ADD": True, "CENTRE": centre, "HAS_BIAS": centre, **tiles}
        yield f"{name} forward", Case(_triton_norm.forward_kernel, types, constants, launch)
        types = dict.fromkeys(["M", "K", "s_stride", "dy_stride", "ds_stride"], "i32:16")
        types |= dict.fromkeys(["s", "weight", "dy", "ds", "dx"], p)
        types |= {"dweight": "*fp32", "dbias": "*fp32", "eps": "fp32"}
        constants = {"ADD": True, "CENTRE": centre, "WEIGHT_GRADIENT": centre, **tiles}
        yield f"{name} backward", Case(_triton_norm.backward_kernel, types, constants, launch)


def layer_norm_linear(kind: str, capability: int) -> Iterator[tuple[str, Case]]:
    module = _triton_norm_linear
    tiles = module.tiling((192, 64), TYPES[kind])
    launch = {"num_warps": tiles.pop("num_warps")}
    pointers = ["x", "gamma", "beta", "weight", "bias", "y", "dy", "dx"]
    pointers += ["dweight", "dbias", "dgamma", "dbeta"]
    types = dict.fromkeys(pointers, f"*{kind}") | dict.fromkeys(["shares", "sums"], "*fp32")
    types |= dict.fromkeys(["M", "K", "N", "stride", "dy_stride"], "i32:16") | {"eps": "fp32"}
    for name in ("forward", "backward", "weights"):
        kernel = getattr(module, f"{name}_kernel")
        types_used = {name: types[name] for name in kernel.arg_names if name in types}
        tiles_used = {name: tiles[name] for name in kernel.arg_names if name in tiles}
        yield f"layer_norm_linear {name}", Case(kernel, types_used, tiles_used, launch)


def swiglu(kind: str, capability: int) -> Iterator[tuple[str, Case]]:
    types = dict.fromkeys(["gate_up", "out", "dout", "dgate_up"], f"*{kind}")
    types |= dict.fromkeys(["width", "stride", "dout_stride"], "i32:16")
    for name in ("forward", "backward"):
        kernel = getattr(_triton_swiglu, f"{name}_kernel")
        used = {argument: types[argument] for argument in kernel.arg_names if argument in types}
        yield f"swiglu {name}", Case(kernel, used, {"BLOCK": _triton_swiglu.BLOCK}, {})


def dice_bce(kind: str, capability: int) -> Iterator[tuple[str, Case]]:
    module = _triton_dice_bce
    types = {"logits": f"*{kind}", "target": "*u8", "N": "i32:16"}
    constants = {"BLOCK": module.SUMMED, "PART": module.PART}
    sums = Case(module.sums_kernel, types | {"shares": "*fp32"}, constants, {})
    yield "dice_bce forward", sums
    types |= {"coefficients": "*fp32", "dlogits": f"*{kind}"}
    yield "dice_bce backward", Case(module.gradient_kernel, types, {"BLOCK": module.BLOCK}, {})


def lora_linear(kind: str, capability: int) -> Iterator[tuple[str, Case]]:
    pointers = dict.fromkeys(["x", "w", "p", "q", "bias", "out", "u"], f"*{kind}")
    integers = ["M", "N", "K", "x_row", "out_row"]
    # A stride of 1 is a constant for Triton; forward reads its matrices down, backward across.
    down = {"w_row": 1, "p_row": 1, "q_row": 1}
    across = {"w_column": 1, "p_column": 1, "q_column": 1}
    tiles = _triton_lora_linear.tiling(16384, 4096, TYPES[kind], capability)
    launch = {key: tiles.pop(key) for key in ("num_warps", "num_stages")}
    settings = {"LOW_RANK": True, "R": 16, "PRECISION": "ieee", **tiles}
    for name, ones, others in (("forward", down, across), ("backward", across, down)):
        constants = {**settings, **ones, "HAS_BIAS": name == "forward", "ADD": name == "backward"}
        types = pointers | dict.fromkeys([*integers, *others], "i32:16")
        yield (
            f"lora_linear {name}",
            Case(_triton_lora_linear.multiply_kernel, types, constants, launch),
        )


def fp8_linear(kind: str, capability: int) -> Iterator[tuple[str, Case]]:
    if kind == "bf16" and capability >= 90:
        types = {"x": f"*{kind}", "values": "*fp8e4nv", "scales": "*fp32"}
        types |= {"K": "i32:16", "stride": "i32:16", "largest": "fp32", "smallest_scale": "fp32"}
        tiles = _triton_fp8.tiling(14336)
        launch = {"num_warps": tiles.pop("num_warps")}
        yield "fp8_linear rows", Case(_triton_fp8.quantise_kernel, types, tiles, launch)


def main() -> None:
    for kind, capability in itertools.product(TYPES, (80, 90)):
        for operation in (norms, layer_norm_linear, swiglu, dice_bce, lora_linear, fp8_linear):
            for name, case in operation(kind, capability):
                compiled = compile_for(
                    case.kernel, case.signature, case.constants, capability, **case.launch
                )
                about = {"kernel": name, "type": kind, "capability": capability}
                about["wgmma"] = "wgmma.mma_async" in compiled.asm["ptx"]
                print(json.dumps(about | usage(compiled)), flush=True)


if __name__ == "__main__":
    main()
