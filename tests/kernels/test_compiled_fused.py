"""The fused kernels compile for A100 and H100, and fit there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.kernels.compiling import SHARED_MEMORY

REPO = Path(__file__).resolve().parents[2]
PRODUCTS = {
    f"{operation} {way}"
    for operation in ("lora_linear", "layer_norm_linear")
    for way in ("forward", "backward")
}


def test_every_kernel_compiles_and_fits_without_spilling() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compiled_fused"],
        cwd=REPO, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(k["type"], k["capability"]) for k in kernels} == {
        (kind, capability) for kind in ("bf16", "fp16", "fp32") for capability in (80, 90)
    }
    for kernel in kernels:
        assert kernel["spilled"] == 0, kernel
        assert kernel["shared"] <= SHARED_MEMORY[kernel["capability"]], kernel
        product = kernel["kernel"] in PRODUCTS and kernel["type"] != "fp32"
        assert kernel["wgmma"] == (product and kernel["capability"] == 90), kernel
