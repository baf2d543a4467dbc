"""Frozen linears with LoRA as one product: what PEFT's layers compute, x kept once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._pytree import tree_map

from mvl_dist.kernels import lora_linear
from mvl_dist.kernels.lora_linear import Part
from mvl_dist.kernels.side_by_side import joined, lay_side_by_side
from tests.kernels.checking import (
    DTYPES,
    LARGEST_ERROR,
    Draw,
    as_double,
    check,
    few,
    kept_bytes,
    on_gpu,
    relative_error,
    results,
)
from tests.kernels.interpreter import DEVICE

WAYS = {"torch": lora_linear.torch_fast, "triton": lora_linear.triton_fused}


def random_parts(
    draw: Draw, depth: int, sizes: Sequence[int], ranks: Sequence[int], beside: bool = True
) -> list[Part]:
    """Parts of these output sizes; rank 0 is a part without an adapter, an odd size has no bias."""
    weights = [
        nn.Parameter(draw.normal(size, depth, scale=depth**-0.5, trained=False), False)
        for size in sizes
    ]
    if beside:
        lay_side_by_side(weights)
    parts = []
    for weight, size, rank in zip(weights, sizes, ranks, strict=True):
        bias = draw.normal(size) if size % 2 == 0 else None
        a = draw.normal(rank, depth, scale=depth**-0.5) if rank else None
        parts.append(Part(weight, bias, a, draw.normal(size, rank) if rank else None, 2.0))
    return parts


def peft_layers(parts: Sequence[Part], depth: int) -> nn.ModuleList:
    """PEFT's own layers with the parts' tensors."""
    from peft import LoraConfig, inject_adapter_in_model

    layers = nn.ModuleList()
    for part in parts:
        linear = nn.Linear(depth, len(part.weight), bias=part.bias is not None)
        layer = nn.ModuleDict({"target": linear})
        if part.a is not None:
            rank = len(part.a)
            settings = {"r": rank, "lora_alpha": rank * part.scaling, "target_modules": ["target"]}
            inject_adapter_in_model(LoraConfig(**settings), layer)
        layer = layer["target"].to(DEVICE, part.weight.dtype)
        given = {"weight": part.weight, "bias": part.bias}
        if part.a is not None:
            given = {f"base_layer.{name}": tensor for name, tensor in given.items()}
            given |= {"lora_A.default.weight": part.a, "lora_B.default.weight": part.b}
        layer.load_state_dict({k: v.detach() for k, v in given.items() if v is not None})
        linear.weight.requires_grad_(False)
        layers.append(layer)
    return layers


@pytest.mark.parametrize("way", ["reference", "torch_fast"])
def test_it_is_what_pefts_layers_compute(way: str) -> None:
    draw = Draw(0, torch.float64)
    parts, x = random_parts(draw, 24, (16, 8, 7), (4, 0, 3)), draw.normal(2, 5, 24)
    layers = peft_layers(parts, 24)
    outputs = [layer(x) for layer in layers]
    y = getattr(lora_linear, way)(x, parts)
    torch.testing.assert_close(y, tuple(outputs), rtol=1e-12, atol=1e-12)
    slope = [torch.randn_like(output) for output in outputs]
    q = layers[0]
    theirs = (x, q.lora_A["default"].weight, q.lora_B["default"].weight)
    expected = torch.autograd.grad(outputs, theirs, slope)
    got = torch.autograd.grad(y, (x, parts[0].a, parts[0].b), slope)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@few
@given(
    st.integers(1, 3), st.integers(3, 70), st.integers(30, 140),
    st.lists(st.tuples(st.integers(5, 90), st.sampled_from([0, 3, 8, 17])), min_size=1, max_size=3),
    st.booleans(), st.booleans(), st.sampled_from(DTYPES), st.integers(0, 2**32),
)  # fmt: skip
def test_both_ways_are_the_linears_in_float64(
    batch: int, length: int, depth: int, shapes: list[tuple[int, int]], beside: bool, packed: bool,
    dtype: torch.dtype, seed: int,
) -> None:  # fmt: skip
    draw = Draw(seed, dtype)
    parts = random_parts(draw, depth, *zip(*shapes, strict=True), beside)
    x = draw.normal(batch, length, depth)
    check(lora_linear, x, parts, packed, plain=lora_linear.reference)
    exact = results(lora_linear.reference, *tree_map(as_double, (x, parts, packed)))
    for got, right in zip(results(lora_linear.torch_fast, x, parts, packed), exact, strict=True):
        assert relative_error(got, right) < LARGEST_ERROR[dtype]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_x_and_the_gradients_may_be_strided(way: Any) -> None:
    draw = Draw(1, torch.float32)
    parts, x = random_parts(draw, 33, (20, 12), (8, 8)), draw.strided(2, 9, 33)

    def transposed(way: Any, *arguments: Any) -> Any:
        return [y.transpose(0, -1) for y in way(*arguments)]

    expected = results(lambda *given: transposed(lora_linear.reference, *given), x, parts)
    got = results(lambda *given: transposed(way, *given), x, parts)
    for mine, right in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, right)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_an_x_without_a_gradient_leaves_the_adapters_theirs(way: Any) -> None:
    draw = Draw(2, torch.float32)
    parts, x = random_parts(draw, 33, (20, 12), (8, 8)), draw.normal(9, 33, trained=False)
    expected, got = (results(one, x, parts) for one in (lora_linear.reference, way))
    for mine, right in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, right)


def test_weights_side_by_side_stay_the_parameters_they_were() -> None:
    layers = nn.ModuleList([nn.Linear(8, size, bias=False) for size in (5, 3)])
    before = {name: tensor.clone() for name, tensor in layers.state_dict().items()}
    weights = [layer.weight for layer in layers]
    assert joined(weights) is None
    lay_side_by_side(weights)
    whole = joined(weights)
    assert whole is not None
    torch.testing.assert_close(whole, torch.cat(list(before.values())))
    torch.testing.assert_close(dict(layers.state_dict()), before)
    assert whole.data_ptr() == weights[0].data_ptr()
    assert joined(weights[::-1]) is None
    layers.to(torch.bfloat16)  # new memory: each is by itself again
    assert joined([layer.weight for layer in layers]) is None


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("rank", [8, 0])
def test_x_is_kept_once_and_only_for_adapters(way: Any, rank: int) -> None:
    draw = Draw(3, torch.bfloat16)
    parts, x = random_parts(draw, 256, (128, 64, 64), (rank, 0, rank)), draw.normal(512, 256)
    layers = peft_layers(parts, 256)
    weights = tuple(tensor for part in parts for tensor in part[:4] if tensor is not None)
    theirs = kept_bytes(lambda x: [layer(x) for layer in layers], x, but=tuple(layers.parameters()))
    ours = kept_bytes(way, x, parts, but=weights)
    low_rank = (512 + 256 + 256) * 16 * 2  # x A^T, all A and all B
    assert ours == (x.numel() * 2 + low_rank if rank else 0)
    assert ours <= theirs + low_rank


def test_a_weight_that_is_trained_is_refused() -> None:
    x, weight = torch.ones(2, 8, device=DEVICE), torch.ones(4, 8, device=DEVICE)
    trained = [Part(weight.requires_grad_())]
    assert "frozen" in lora_linear.cannot(x, trained)
    for way in WAYS.values():
        with pytest.raises(ValueError, match="frozen"):
            way(x, trained)
        with pytest.raises(ValueError, match="both or neither"):
            way(x, [Part(weight.detach(), a=x)])


def test_what_the_kernel_cannot_do_is_said() -> None:
    x, weight = torch.ones(2, 8, device=DEVICE), torch.ones(4, 8, device=DEVICE)
    assert "float64" in lora_linear.cannot(x.double(), [Part(weight.double())])
    assert "bfloat16" in lora_linear.cannot(x.bfloat16(), [Part(weight)])


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("depth", "sizes", "ranks"),
    [(4096, (4096, 1024, 1024), (8, 0, 8)), (64, (4096,), (8,)), (4096, (64,), (8,))],
)
def test_at_the_sizes_of_a_training_step(
    dtype: torch.dtype, depth: int, sizes: tuple[int, ...], ranks: tuple[int, ...]
) -> None:
    draw = Draw(4, dtype)
    parts, x = random_parts(draw, depth, sizes, ranks), draw.normal(1, 4096, depth)
    check(lora_linear, x, parts, plain=lora_linear.reference)
