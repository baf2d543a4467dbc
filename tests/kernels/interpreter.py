"""Triton on a machine without a GPU: its interpreter, with bfloat16 and FP8 as a GPU treats them.

To be imported before any module that holds kernels: Triton decides on its import.
"""

from __future__ import annotations

import os

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"


def round_as_a_gpu_does() -> None:
    """Round float32 to the nearest bfloat16 or FP8, and multiply bfloat16 matrices as numbers.

    The interpreter cuts bfloat16's digits off, loses the carry where rounding to FP8 overflows the
    mantissa, and hands the bits of a bfloat16 matrix to numpy as integers; none of this is what the
    compiled kernel does.
    """
    import numpy as np
    from triton import language as tl
    from triton.runtime import interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    if getattr(builder, "rounds_as_a_gpu_does", False):
        return
    cast, to_fp8, dot = builder.cast_impl, builder.create_fp_to_fp, builder.create_dot

    def widened(bits: np.ndarray) -> np.ndarray:
        return (bits.astype(np.uint32) << 16).view(np.float32)

    def nearest(data: np.ndarray, dtype: torch.dtype, bits: torch.dtype) -> np.ndarray:
        return torch.from_numpy(np.ascontiguousarray(data)).to(dtype).view(bits).numpy()

    def new_cast(self: object, source: object, target: object) -> object:
        kinds = (source.dtype.scalar, target.scalar)  # type: ignore[attr-defined]
        data = source.data  # type: ignore[attr-defined]
        if kinds == (tl.bfloat16, tl.float32):
            return handle(widened(data), tl.float32)
        if kinds == (tl.float32, tl.bfloat16):
            return handle(nearest(data, torch.bfloat16, torch.uint16), tl.bfloat16)
        return cast(self, source, target)

    def new_to_fp8(self: object, source: object, target: object, rounding: object) -> object:
        kinds = (source.dtype.scalar, target.scalar)  # type: ignore[attr-defined]
        if kinds == (tl.float32, tl.float8e4nv):
            data = source.data  # type: ignore[attr-defined]
            return handle(nearest(data, torch.float8_e4m3fn, torch.uint8), tl.float8e4nv)
        return to_fp8(self, source, target, rounding)

    def new_dot(self: object, a: object, b: object, d: object, *settings: object) -> object:
        if a.dtype.scalar == tl.bfloat16:  # type: ignore[attr-defined]
            a, b = (handle(widened(m.data), tl.float32) for m in (a, b))  # type: ignore[attr-defined]
        return dot(self, a, b, d, *settings)

    builder.cast_impl, builder.create_fp_to_fp = new_cast, new_to_fp8
    builder.create_dot = new_dot
    builder.rounds_as_a_gpu_does = True


if DEVICE == "cpu":
    round_as_a_gpu_does()
