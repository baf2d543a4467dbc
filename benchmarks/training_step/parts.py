"""The parts of a step, each forward and backward, in every way that there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.training_step.variants import Size, missing
from mvl_dist.kernels import (
    dice_bce,
    dispatch,
    gqa_attention,
    layer_norm,
    layer_norm_linear,
    lora_linear,
    rms_norm,
    short_head_attention,
    swiglu,
)
from mvl_dist.kernels.side_by_side import lay_side_by_side
from mvl_dist.kernels.trial import Passes

HEADS, HEAD_SIZE, WIDTH, RANK, DROPOUT = 4, 16, 64, 8, 0.2
# Of attention's seven products, backward has five: flash kernels compute the scores again.
PRODUCTS, FORWARD_PRODUCTS = 7, 2


@dataclass(frozen=True)
class Way:
    """One way of a part; `note` says why it cannot be measured, `peer` that it is one more."""

    run: Callable[..., Any] | None = None
    dtype: torch.dtype = torch.float32
    note: str = ""
    peer: bool = False


@dataclass(frozen=True)
class Part:
    """A part of the step.

    Attributes:
        make: its arguments in a dtype, and those that go by name.
        tflop: of forward and backward; 0 for what memory limits.
    """

    name: str
    make: Callable[[torch.dtype], tuple[tuple[Any, ...], dict[str, Any]]]
    tflop: float = 0.0
    ways: dict[str, Way] = field(default_factory=dict)

    def call(self, way: Way) -> Callable[[], Any]:
        """Forward and backward of one way on arguments of its own."""
        assert way.run is not None
        passes = Passes(way.run, *self.make(way.dtype))
        return lambda: passes.backward(passes.forward())


def all_parts(size: Size, batch: int, device: torch.device) -> list[Part]:
    """Parts in the order of their weight in a step."""
    tokens, donor = size.tokens, size.donor
    hidden, inner = donor["hidden_size"], donor["intermediate_size"]
    heads, kv_heads = donor["num_attention_heads"], donor["num_key_value_heads"]
    head = hidden // heads
    kv = kv_heads * head

    def random(dtype: torch.dtype, *shape: int, grad: bool = True) -> torch.Tensor:
        values = torch.randn(shape, device=device).to(dtype)
        return values.requires_grad_(grad)

    def linears(dtype: torch.dtype, *sizes: tuple[int, bool], packed: bool = False) -> Any:
        weights = [torch.nn.Parameter(random(dtype, n, hidden) * 0.02, False) for n, _ in sizes]
        lay_side_by_side(weights)
        parts = [
            lora_linear.Part(
                weight,
                None,
                random(dtype, RANK, hidden) if adapted else None,
                random(dtype, len(weight), RANK) if adapted else None,
                2.0,
            )
            for weight, (_, adapted) in zip(weights, sizes, strict=True)
        ]
        return (random(dtype, batch, tokens, hidden), parts), {"packed": packed}

    def attention_tflop(query_heads: int, head_size: int) -> float:
        return PRODUCTS * 2 * batch * query_heads * tokens**2 * head_size / 1e12

    def linear_tflop(columns: int) -> float:
        return 4 * batch * tokens * hidden * columns / 1e12  # forward, and the input's gradient

    def qkv(dtype: torch.dtype, dropout: float) -> Any:
        shape = (batch, tokens, 3, HEADS, HEAD_SIZE)
        return (random(dtype, *shape),), {"dropout": dropout}

    def norm(dtype: torch.dtype, width: int, bias: bool, trained: bool) -> Any:
        x, residual = (random(dtype, batch, tokens, width) for _ in range(2))
        weights = [random(dtype, width, grad=trained) for _ in range(1 + bias)]
        return (x, *weights, 1e-5, residual), {}

    def norm_and_qkv(dtype: torch.dtype) -> Any:
        x, weight = random(dtype, batch, tokens, WIDTH), random(dtype, 3 * WIDTH, WIDTH)
        gamma, beta = (random(dtype, WIDTH) for _ in range(2))
        return (x, gamma, beta, 1e-5, weight, random(dtype, 3 * WIDTH)), {}

    def loss(dtype: torch.dtype) -> Any:
        shape = (batch, 1, *(size.grid,) * 3)
        target = (torch.rand(shape, device=device) < 0.1).to(dtype)
        return (random(dtype, *shape), target), {}

    def grouped(dtype: torch.dtype) -> Any:
        shapes = ((heads, head), (kv_heads, head), (kv_heads, head))
        return tuple(random(dtype, batch, tokens, *shape) for shape in shapes), {}

    table: list[tuple[str, ModuleType, Any, float, Callable[[], Any] | None]] = [
        ("ViT attention, dropout 0.2", short_head_attention, partial(qkv, dropout=DROPOUT),
         attention_tflop(HEADS, HEAD_SIZE), None),
        ("ViT attention, no dropout", short_head_attention, partial(qkv, dropout=0.0),
         attention_tflop(HEADS, HEAD_SIZE), None),
        ("gate and up", lora_linear,
         lambda dtype: linears(dtype, (inner, False), (inner, False), packed=True),
         linear_tflop(2 * inner), None),
        ("q, k, v with LoRA", lora_linear,
         lambda dtype: linears(dtype, (hidden, True), (kv, False), (kv, True)),
         linear_tflop(hidden + 2 * kv), None),
        ("grouped-query attention", gqa_attention, grouped, attention_tflop(heads, head), None),
        ("SwiGLU", swiglu,
         lambda dtype: ((random(dtype, batch, tokens, 2 * inner),), {}), 0.0, _liger_swiglu),
        ("RMSNorm + residual", rms_norm,
         lambda dtype: norm(dtype, hidden, bias=False, trained=False), 0.0, _liger_rms_norm),
        ("LayerNorm + residual", layer_norm,
         lambda dtype: norm(dtype, WIDTH, bias=True, trained=True), 0.0, _liger_layer_norm),
        ("LayerNorm + packed q, k, v", layer_norm_linear, norm_and_qkv, 0.0, None),
        ("Dice + BCE", dice_bce, loss, 0.0, None),
    ]  # fmt: skip
    return [
        Part(name, make, tflop, _ways(operation, size.dtype, device, liger))
        for name, operation, make, tflop, liger in table
    ]


def _ways(
    operation: ModuleType,
    dtype: torch.dtype,
    device: torch.device,
    liger: Callable[[], Any] | None,
) -> dict[str, Way]:
    in_torch = dispatch.in_torch(operation)
    ways = {
        "naive": Way(operation.reference),
        "eager": Way(in_torch, dtype),
        "compile": Way(torch.compile(in_torch, dynamic=False), dtype),
        "ours": Way(partial(dispatch.run, operation), dtype),
    }
    if liger is not None:
        note = missing("liger", device)
        ways["liger"] = Way(None if note else liger(), dtype, note)
    if device.type == "cuda" and "attention" in operation.__name__:
        for backend in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"):
            ways[f"SDPA {backend[:-10].lower()}"] = Way(_by(in_torch, backend), dtype, peer=True)
    return ways


def adam_ways(model: torch.nn.Module) -> dict[str, Callable[[], Any]]:
    """Adam's step over a model's trained weights in float32: torch's three implementations."""
    ways: dict[str, Callable[[], Any]] = {}
    for name in ("for loop", "foreach", "fused"):
        weights = [p.detach().float() for p in model.parameters() if p.requires_grad]
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        ways[name] = torch.optim.Adam(
            weights, lr=1e-6, foreach=name == "foreach", fused=name == "fused"
        ).step
    return ways


def _by(in_torch: Callable[..., Any], backend: str) -> Callable[..., Any]:
    def run(*arguments: Any, **options: Any) -> Any:
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return in_torch(*arguments, **options)

    return run


def _liger_swiglu() -> Any:
    from liger_kernel.ops import LigerSiLUMulFunction

    return lambda gate_up: LigerSiLUMulFunction.apply(*gate_up.chunk(2, -1), 1.0, 1.0)


def _liger_rms_norm() -> Any:
    from liger_kernel.transformers.functional import liger_fused_add_rms_norm

    return lambda x, weight, eps, residual: liger_fused_add_rms_norm(
        x, residual, weight, eps, 0.0, "llama", False
    )


def _liger_layer_norm() -> Any:
    from liger_kernel.transformers.functional import liger_layer_norm

    def run(x: Any, weight: Any, bias: Any, eps: float, residual: Any) -> Any:
        s = x + residual
        return liger_layer_norm(s, weight, bias, eps), s

    return run
