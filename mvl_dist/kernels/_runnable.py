"""Whether Triton can run an operation on given tensors, and on which device it is launched."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

import torch
from torch import Tensor

FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def why_not(*tensors: Tensor | None) -> str:
    """Why Triton cannot run on these tensors, which must be alike; '' if it can.

    A CPU is enough under TRITON_INTERPRET=1, which is how kernels are tested without a GPU.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    first = given[0]
    if find_spec("triton") is None:
        return "triton is not installed (it comes with the CUDA build of torch)"
    if first.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"Triton needs a CUDA device, the input is on {first.device}"
    if first.dtype not in FLOATS:
        return f"{first.dtype} is not one of bfloat16, float16 and float32"
    for other in given[1:]:
        if other.device != first.device:
            return f"tensors on {first.device} and {other.device}"
        if other.dtype != first.dtype:
            return f"tensors of {first.dtype} and {other.dtype}"
    return ""


def device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes a tensor's GPU the current one: Triton launches there, wherever the tensors are."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def rows_of(tensor: Tensor) -> Tensor:
    """(..., K) as (M, K) with adjacent columns: a view where the strides allow it, else a copy."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def processors(tensor: Tensor) -> int:
    """Multiprocessors of a tensor's GPU; 1 for a CPU."""
    if tensor.is_cuda:
        return torch.cuda.get_device_properties(tensor.device).multi_processor_count
    return 1
