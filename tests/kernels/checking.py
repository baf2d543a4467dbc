"""An operation's results and gradients against float64, and against torch in the same precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from tests.kernels.interpreter import DEVICE

few = settings(max_examples=12, deadline=None, database=None, phases=[Phase.generate])
"""Fresh examples at every run; the interpreter takes a while for each."""

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

HALVES = (torch.bfloat16, torch.float16)
DTYPES = (*HALVES, torch.float32)
LARGEST_ERROR = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


class Draw:
    """Fresh random tensors on the device under test, by a seed that a failing test prints."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype

    def normal(self, *shape: int, scale: float = 1.0, trained: bool = True) -> Tensor:
        values = torch.randn(shape, generator=self.generator) * scale
        return values.to(DEVICE, self.dtype).requires_grad_(trained)

    def strided(self, *shape: int) -> Tensor:
        """As `normal`, cut out of a wider tensor: rows lie apart."""
        wider = self.normal(*shape[:-1], shape[-1] + 5, trained=False)
        return wider[..., 3 : 3 + shape[-1]].requires_grad_()


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that torch hands out uninitialised is full of NaN: what isn't written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def results(
    way: Callable[..., Any], *arguments: Any, seed: int = 0, **options: Any
) -> list[Tensor]:
    """All differentiable outputs, then the gradient of every tensor that asks for one."""
    outputs = [o for o in tree_leaves(way(*arguments, **options)) if _differentiable(o)]
    generator = torch.Generator().manual_seed(0)
    # In bfloat16's grid, so that every precision is given the very same ones.
    given = [
        torch.randn(o.shape, generator=generator).bfloat16().to(o.device, o.dtype) for o in outputs
    ]
    wanted = [leaf for leaf in tree_leaves((arguments, options)) if _differentiable(leaf)]
    return [o.detach() for o in outputs] + list(torch.autograd.grad(outputs, wanted, given))


def check(
    operation: ModuleType, *arguments: Any, exact: Any = None, plain: Any = None, **options: Any
) -> None:
    """`triton_fused` against `exact` (the operation's reference) in float64.

    In half precision its error may also not exceed that of `plain` (the operation's `torch_fast`).
    """
    assert operation.cannot(*arguments, **options) == ""
    doubles, double_options = tree_map(as_double, (arguments, options))
    expected = results(exact or operation.reference, *doubles, **double_options)
    with poisoned():
        got = results(operation.triton_fused, *arguments, **options)
    dtype = tree_leaves(arguments)[0].dtype
    known = results(plain or operation.torch_fast, *arguments, **options)
    for number, (mine, theirs, right) in enumerate(zip(got, known, expected, strict=True)):
        assert mine.shape == right.shape
        assert mine.dtype == theirs.dtype
        error = relative_error(mine, right)
        few_numbers = 1 + 4 / mine.numel() ** 0.5  # their errors do not average out
        limit = few_numbers * LARGEST_ERROR[dtype]
        if dtype in HALVES:
            theirs_too = 1.1 * few_numbers * relative_error(theirs, right)
            theirs_too += 2e-2 * LARGEST_ERROR[dtype]
            # Small gradients are below float16's normal numbers, for torch too.
            limit = theirs_too if dtype == torch.float16 else min(limit, theirs_too)
        assert error <= limit, f"result {number} of {len(got)}: {error:.1e} > {limit:.1e}"


def relative_error(got: Tensor, right: Tensor) -> float:
    """Norm of the difference over the norm of what is right."""
    return float((got.double() - right.double()).norm() / right.double().norm().clamp_min(1e-30))


def kept_bytes(way: Callable[..., Any], *arguments: Any, but: tuple[Tensor, ...] = ()) -> int:
    """Bytes that autograd keeps for backward: each memory once, without the tensors of `but`."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = way(*arguments)
    for tensor in but:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    del outputs  # until here, so that no address is given out twice
    return sum(kept.values())


def _differentiable(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad


def as_double(leaf: Any) -> Any:
    """A floating tensor in float64, a leaf that asks for a gradient if it did."""
    if isinstance(leaf, Tensor) and leaf.is_floating_point():
        return leaf.detach().double().requires_grad_(leaf.requires_grad)
    return leaf
