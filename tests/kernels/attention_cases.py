"""What the tests of both attentions share: tiles small enough to walk over in the interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import settings

from tests.kernels.checking import few

fewer = settings(few, max_examples=8)
SMALL = (64, 32, 2, 1)
"""Two steps of 32 keys a turn, one of them with its exponentials on the FMA units."""


@contextmanager
def tiles(block: int, step: int, steps: int, fma: int) -> Iterator[None]:
    """Run all kernels with these sizes, untuned."""
    # Only now: these decide on their import whether to interpret.
    import triton

    from mvl_dist.kernels import _attention_launch

    sizes = {"BLOCK": block, "STEP": step, "STEPS": steps, "FMA_STEPS": fma}
    before = {key: kernel.configs for key, kernel in _attention_launch.KERNELS.items()}
    try:
        for kernel in _attention_launch.KERNELS.values():
            kernel.configs = [triton.Config(sizes, num_warps=4, num_stages=2)]
        yield
    finally:
        for key, kernel in _attention_launch.KERNELS.items():
            kernel.configs = before[key]
