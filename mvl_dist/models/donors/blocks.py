"""Fill an empty block with a donor's tensors, and their checksum: the same for every family."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import nn

from mvl_dist.errors import UserError


def load_tensors(
    block: nn.Module, names: Mapping[str, str], tensors: Mapping[str, torch.Tensor], source: str
) -> None:
    """Put tensors into a block that was built on the meta device, as float32.

    Args:
        names: parameter name in the block -> tensor name in the donor.

    Raises:
        UserError: a tensor's shape contradicts the donor's config, or it is quantised: int8 and
            float8 mean nothing without scales, which stand in tensors that are not read here.
    """
    wanted = dict(block.named_parameters())
    state = {}
    for inside, outside in names.items():
        got, expected = tuple(tensors[outside].shape), tuple(wanted[inside].shape)
        if got != expected:
            raise UserError(
                f"donor '{source}': {outside} has shape {got}, its config says {expected}; "
                "config and weights do not belong together"
            )
        dtype = tensors[outside].dtype
        if dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            raise UserError(
                f"donor '{source}': {outside} is stored as {str(dtype).removeprefix('torch.')}: "
                "quantised weights are read from GGUF only; use the unquantised model"
            )
        state[inside] = tensors[outside].to(torch.float32)
    block.load_state_dict(state, assign=True)


def checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 (16 digits) over names and float32 values: independent of file format and dtype.

    Layer numbers count as part of the name, so two layers with equal weights differ.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].to(torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
