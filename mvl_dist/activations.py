"""Activation maps of a trained ViT, taken by forward hooks: what the paper's Figure 3 shows.

Nothing is added to the network: a map is the root mean square of a stage's tokens over their
channels, at the tokens' own grid. The paper's code decodes its maps by projections that were never
trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mvl_dist.kernels import dispatch
from mvl_dist.labelling import region_logits
from mvl_dist.models.vit import ViTParts
from mvl_dist.showcase import STAGES

Maps = dict[str, npt.NDArray[np.float32]]
ENCODER, MAPPER_IN, MAPPER_OUT, DECODER, ATTENTION, OUTPUT = STAGES


def has_maps(model: nn.Module) -> bool:
    """Whether a model is one of this project's ViTs, whose stages have the paper's names."""
    return isinstance(getattr(model, "vit", None), ViTParts)  # MONAI's UNETR has a `vit` too


@torch.no_grad()
def activation_maps(model: nn.Module, image: torch.Tensor, activation: str) -> Maps:
    """Maps of one image's way through a trained ViT; stages that a model has not are left out.

    V_E(X)     tokens after the ViT blocks before the language model (all blocks without one)
    V_D1       tokens in the language model's width
    V_D2       Q, the tokens that come back
    V_D(Q)     the last tokens before the head
    attention  of the last ViT block: how much the tokens inside the prediction attend to each
               token, the mean over heads (all tokens where nothing is predicted)
    Y          logits of the first region; foreground where above 0

    Args:
        model: in evaluation mode, one of those with `has_maps`.
        image: (C, D, H, W).
        activation: sigmoid or softmax.

    Returns:
        Stage -> (d, h, w) at the grid of tokens; Y at the image's grid (D, H, W).
    """
    parts: Any = model
    vit = parts.vit
    position = getattr(parts, "position", len(vit.blocks))
    watched: dict[str, nn.Module] = {
        # At position 0 the language model is given the embedded patches.
        ENCODER: vit.blocks[position - 1] if position else vit.embedding,
        "qkv": vit.blocks[-1].attention.qkv,
    }
    if hasattr(parts, "mappers"):
        watched |= {MAPPER_IN: parts.mappers.into, MAPPER_OUT: parts.mappers.back}
    weight = next(model.parameters())
    # In torch every module runs; kernels pass some by, and with them what they put out.
    with dispatch.using("torch"), _outputs(watched) as seen, _inputs(vit.head) as before_head:
        logits = model(image[None].to(weight.device, weight.dtype)).float()
    grid = tuple(size // patch for size, patch in zip(image.shape[1:], vit.head.patch, strict=True))
    maps: Maps = {
        name: _grid_of(seen[name], grid)
        for name in (ENCODER, MAPPER_IN, MAPPER_OUT)
        if name in seen
    }
    maps[DECODER] = _grid_of(before_head[0], grid)
    shown = region_logits(logits, activation)[0]
    inside = torch.nn.functional.max_pool3d((shown > 0).any(0)[None].float(), vit.head.patch)
    attended = attention_from(seen["qkv"], vit.blocks[-1].attention.heads, inside.flatten() > 0)
    maps[ATTENTION] = attended.reshape(grid).cpu().numpy()
    maps[OUTPUT] = shown[0].cpu().numpy()
    return maps


def attention_from(qkv: torch.Tensor, heads: int, queries: torch.Tensor) -> torch.Tensor:
    """Mean attention that chosen tokens pay to every token: (T,), sums to 1.

    Args:
        qkv: (1, T, 3 width), queries, keys and values of all heads side by side.
        queries: (T,) bool, whose attention is meant; all where none is chosen.
    """
    _, length, triple = qkv.shape
    q, k, _ = qkv[0].float().reshape(length, 3, heads, triple // 3 // heads).permute(1, 2, 0, 3)
    chosen = q[:, queries] if bool(queries.any()) else q
    total = torch.zeros(length, device=qkv.device)
    for head in range(heads):  # one head at a time: T x T scores of all would be large
        scores = chosen[head] @ k[head].T / math.sqrt(q.shape[-1])
        total += scores.softmax(-1).mean(0)
    return total / heads


def _grid_of(tokens: torch.Tensor, grid: tuple[int, ...]) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = (
        tokens[0].float().square().mean(-1).sqrt().reshape(grid).cpu().numpy()
    )
    return values


@contextmanager
def _outputs(modules: dict[str, nn.Module]) -> Iterator[dict[str, torch.Tensor]]:
    """What named modules give out while the context is open."""
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: torch.Tensor) -> None:
            seen[name] = output

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _inputs(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """What a module is given while the context is open."""
    seen: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    try:
        yield seen
    finally:
        handle.remove()
