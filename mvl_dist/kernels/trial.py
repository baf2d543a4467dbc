"""Run an operation both ways on the same arguments: are they equal, and which is faster?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from mvl_dist.kernels.picks import Pick

Way = Callable[..., Any]

# Two results in half precision each carry the rounding of their own last step.
LARGEST_DIFFERENCE = {torch.float32: 2e-3, torch.float16: 1e-2, torch.bfloat16: 2e-2}
WARM_UPS, REPEATS = 3, 10


def try_both(
    asked: Pick,
    torch_way: Way,
    triton_way: Way,
    arguments: tuple[Any, ...],
    options: dict[str, Any],
) -> Pick:
    """Time and compare both ways, forward and backward; torch's generators are left as they were.

    A kernel whose results differ from torch's, or that fails, is not picked, and the pick says why.
    """
    tensors = [leaf for leaf in tree_leaves((arguments, options)) if isinstance(leaf, torch.Tensor)]
    device = tensors[0].device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            difference = largest_difference(torch_way, triton_way, arguments, options)
            triton_ms = milliseconds(triton_way, arguments, options, device)
        except Exception as error:  # whatever a compiler or driver says on this very GPU
            words = " ".join(str(error).split())[:200]
            return replace(asked, reason=f"the kernel failed: {type(error).__name__}: {words}")
        torch_ms = milliseconds(torch_way, arguments, options, device)
    allowed = max(LARGEST_DIFFERENCE.get(tensor.dtype, 0.0) for tensor in tensors)
    found = replace(asked, triton_ms=triton_ms, torch_ms=torch_ms, difference=difference)
    if not difference <= allowed:  # also for NaN
        return replace(
            found, reason=f"the kernel's results differ from torch's by {difference:.1e}"
        )
    return replace(found, way="triton" if triton_ms < torch_ms else "torch")


def largest_difference(
    torch_way: Way, triton_way: Way, arguments: tuple[Any, ...], options: dict[str, Any]
) -> float:
    """Relative norm of the largest difference among outputs and gradients.

    Dropout is set to 0: the two ways drop other elements.
    """
    options = {key: 0.0 if key == "dropout" else value for key, value in options.items()}
    both = []
    for way in (torch_way, triton_way):
        passes = Passes(way, arguments, options)
        outputs = passes.forward()
        both.append([o.detach() for o in outputs] + passes.backward(outputs))
    worst = 0.0
    for expected, got in zip(*both, strict=True):
        distance = (expected.double() - got.double()).norm()
        worst = max(worst, float(distance / expected.double().norm().clamp_min(1e-30)))
    return worst


def milliseconds(
    way: Way, arguments: tuple[Any, ...], options: dict[str, Any], device: torch.device
) -> float:
    """Median time of forward and backward, after warm-up."""
    passes = Passes(way, arguments, options)
    times = []
    for _ in range(WARM_UPS + REPEATS):
        started = _now(device)
        passes.backward(passes.forward())
        times.append(_milliseconds_between(started, _now(device)))
    return statistics.median(times[WARM_UPS:])


class Passes:
    """Forward and backward of one way, over leaves of their own and one random gradient."""

    def __init__(self, way: Way, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        def leaf(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return value.detach().requires_grad_(value.requires_grad)
            return value

        self.way = way
        self.arguments, self.options = tree_map(leaf, (arguments, options))
        leaves = tree_leaves((self.arguments, self.options))
        self.wanted = [leaf for leaf in leaves if getattr(leaf, "requires_grad", False)]
        self.gradients: list[torch.Tensor] = []

    def forward(self) -> list[torch.Tensor]:
        """The outputs that have a gradient."""
        outputs = tree_leaves(self.way(*self.arguments, **self.options))
        return [o for o in outputs if isinstance(o, torch.Tensor) and o.requires_grad]

    def backward(self, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Gradients of all leaves that want one."""
        if not self.gradients:
            generator = torch.Generator(outputs[0].device).manual_seed(0)
            self.gradients = [
                torch.randn(o.shape, dtype=o.dtype, device=o.device, generator=generator)
                for o in outputs
            ]
        return list(torch.autograd.grad(outputs, self.wanted, self.gradients))


def _now(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _milliseconds_between(started: Any, ended: Any) -> float:
    if isinstance(started, float):
        return 1000 * float(ended - started)
    ended.synchronize()
    return float(started.elapsed_time(ended))
