"""FLOP of a sample, counted on shapes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from mvl_dist.models import Shape3D
from mvl_dist.models.measure.step import GPUKernels, fake_weights, mode, run


def _flash_forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, *_of_all_heads(query, key, value)))


def _flash_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, *_of_all_heads(query, key, value)))


def _of_all_heads(query: Any, *shapes: Any) -> list[tuple[int, ...]]:
    """Shapes (B, heads, T, D) of keys and values as if each query's head had its own.

    Grouped-query attention computes as much; torch 2.11's formula refuses fewer heads.
    """
    return [(shape[0], query[1], *shape[2:]) for shape in shapes]


def _convolution_backward(
    gradient: Sequence[int],
    image: Sequence[int],
    weight: Sequence[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    wanted: Sequence[bool],
    **_: Any,
) -> int:
    """As many FLOP as the forward for each gradient wanted, the image's and the weight's."""
    positions = image[0] * math.prod((image if transposed else gradient)[2:])
    return 2 * positions * math.prod(weight) * sum(wanted[:2])


# torch 2.13's counter has no formula for the CPU's flash attention, so that it would count 0, and
# its convolution_backward takes a grouped convolution's weight gradient for a full one's.
_FORMULAS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _flash_forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _flash_backward,
    torch.ops.aten.convolution_backward: _convolution_backward,
}


def _flop(model: nn.Module, in_channels: int, grid: Shape3D, training: bool) -> int:
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with mode(model, training), fake, GPUKernels(), fake_weights(model, torch.float32), counter:
        run(model, torch.empty(1, in_channels, *grid))
    return int(counter.get_total_flops())


def tflop_per_sample(model: nn.Module, in_channels: int, grid: Shape3D) -> float:
    """TFLOP (10^12, a multiply-add is two) of one sample's forward in eval mode.

    Matrix products, convolutions and attention's two products are counted; norms, softmax,
    activations and interpolation are not, as is usual.

    Args:
        model: maps (1, in_channels, *grid) to logits; its weights are not touched.
        in_channels: of the image.
        grid: D, H, W in voxels.
    """
    return _flop(model, in_channels, grid, training=False) / 1e12


def training_tflop_per_sample(model: nn.Module, in_channels: int, grid: Shape3D) -> float:
    """TFLOP of one sample's forward and backward in training mode; see `tflop_per_sample`.

    The backward is run, not estimated: a frozen weight costs no weight gradient, and what lies
    before the first trained weight costs nothing. Attention's backward computes the scores again,
    as flash kernels do: five products against the forward's two.
    """
    return _flop(model, in_channels, grid, training=True) / 1e12
