"""What Triton makes of the attention kernels for an A100 and an H100, without having one.

    python -m tests.kernels.attention_compiled [--every-tile]

prints a JSON line for each kernel. A process of its own, because it must not be interpreted.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from typing import Any, NamedTuple

from tests.kernels.compiling import compile_for, cuobjdump, usage

KERNELS = "forward", "queries", "keys"


class Case(NamedTuple):
    capability: int
    head_size: int
    dtype: str
    dropout: bool = False
    group: int = 1


# The ViT's own with every tile; the other head sizes and precisions with the first one.
CASES = [
    Case(80, 16, "bf16"),
    Case(90, 16, "bf16"),
    Case(80, 16, "bf16", dropout=True),
    Case(90, 16, "bf16", dropout=True),
    Case(80, 32, "fp16", dropout=True),
    Case(90, 64, "fp16"),
    Case(80, 128, "bf16", group=4),
    Case(90, 128, "bf16", group=4),
    Case(80, 128, "fp32", group=4),
]


def compiled(name: str, case: Case, tile: Any) -> Any:
    """One kernel with one tile, its arguments as torch hands them over."""
    from mvl_dist.kernels import _triton_attention, _triton_attention_backward

    kernel = getattr(_triton_attention, name, None) or getattr(_triton_attention_backward, name)
    constants = {"GROUP": case.group, "D": case.head_size, "DROPOUT": case.dropout, **tile.kwargs}
    signature = {}
    for argument in kernel.arg_names:
        if argument in ("seed_ptr", "hash_ptr") and not case.dropout:
            constants[argument] = None
        elif argument not in constants:
            signature[argument] = type_of(argument, case.dtype)
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    return compile_for(kernel, signature, constants, case.capability, **options)


def type_of(argument: str, dtype: str) -> str:
    if argument.endswith("_ptr"):
        own = {"seed_ptr": "i64", "hash_ptr": "i32", "lse_ptr": "fp32", "minus_delta_ptr": "fp32"}
        return "*" + own.get(argument, dtype)
    if argument in ("scale", "rate", "unscale"):
        return "fp32"
    return "i32" if argument in ("limit", "heads", "kv_heads") else "i32:16"


def main_loop(kernel: Any) -> Counter[str]:
    """Instructions of the loop over whole steps: the first one with exponentials."""
    text = cuobjdump(kernel, "-sass")
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)(.*?);", text)
    code = [(int(address, 16), name, rest) for address, name, rest in found]
    for address, name, rest in code:
        target = re.search(r"0x([0-9a-f]+)", rest) if name.startswith("BRA") else None
        if target and int(target[1], 16) < address:
            body = [n.split(".")[0] for a, n, _ in code if int(target[1], 16) <= a <= address]
            if "MUFU" in body:
                return Counter(body)
    raise AssertionError("no loop with exponentials")


def report(name: str, case: Case, tile: Any, first: Any) -> dict[str, Any]:
    """Resources, and instructions of the main loop for each score of a thread."""
    kernel = compiled(name, case, tile)
    counts = main_loop(kernel)
    sizes = tile.kwargs
    scores = sizes["BLOCK"] * sizes["STEP"] * sizes["STEPS"] / (32 * tile.num_warps)
    kinds = "MUFU", "HMMA", "HGMMA", "FFMA", "FMNMX", "F2FP", "STS", "BAR"
    return {
        "kernel": name,
        **case._asdict(),
        "tile": [*sizes.values(), tile.num_warps, tile.num_stages],
        "first": tile is first,
        **usage(kernel),
        "a_score": round(counts.total() / scores, 2),
        **{kind: round(counts[kind] / scores, 3) for kind in kinds if counts[kind]},
    }


def main() -> None:
    import torch

    from mvl_dist.kernels._attention_launch import TILES, kind_of

    for case in CASES:
        for name in KERNELS:
            dtype = torch.float32 if case.dtype == "fp32" else torch.bfloat16
            tiles = TILES[name, kind_of(case.head_size, dtype)]
            every = case == CASES[0] or "--every-tile" in sys.argv
            for tile in tiles if every else tiles[:1]:
                print(json.dumps(report(name, case, tile, tiles[0])), flush=True)


if __name__ == "__main__":
    main()
