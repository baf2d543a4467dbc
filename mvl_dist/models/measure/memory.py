"""Memory of a training step's activations, counted on shapes alone."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mvl_dist.models import Shape3D
from mvl_dist.models.measure.step import GPUKernels, fake_weights, mode, run


class _Memory(TorchDispatchMode):
    """Log when each storage is born and dies; views share a storage and cost nothing.

    A parameter's gradient is told from other tensors only when it is complete, so the peak is
    computed from the log at the end, without what was left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self._log: list[tuple[int, int]] = []  # (number of the storage, bytes born or -bytes died)
        self._born = 0
        self._left_out: set[int] = set()
        self._alive: dict[int, tuple[int, weakref.ref[Any]]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address in self._alive:
            return
        number, size = self._born, storage.nbytes()
        self._born += 1
        death = weakref.ref(storage, partial(self._dies, address, number, size))
        self._alive[address] = (number, death)
        self._log.append((number, size))

    def _dies(self, address: int, number: int, size: int, _: Any) -> None:
        del self._alive[address]
        self._log.append((number, -size))

    def leave_out(self, tensor: torch.Tensor) -> None:
        """Take a tensor that was made in this context out of the count."""
        self._left_out.add(self._alive[tensor.untyped_storage()._cdata][0])

    def leave_out_gradient(self, parameter: torch.Tensor) -> None:
        """Take a parameter's complete gradient out of the count."""
        if parameter.grad is not None:
            self.leave_out(parameter.grad)

    def peak_bytes(self) -> int:
        """The most that was alive at one time."""
        now = peak = 0
        for number, change in self._log:
            if number not in self._left_out:
                now += change
                peak = max(peak, now)
        return peak


def peak_activation_bytes(
    model: nn.Module, in_channels: int, grid: Shape3D, dtype: torch.dtype
) -> int:
    """Most bytes alive at one time in the forward and backward of one sample in training mode.

    Counted are the image, all that autograd keeps, the logits, and the gradients on their way.
    Parameters, buffers and the parameters' gradients are not, nor are the loss's own tensors (but
    for the logits' gradient), a kernel's workspace, and what an allocator rounds up or fragments.
    Attention is counted as a flash kernel does it, its scores never stored (see `GPUKernels`).

    Args:
        model: maps (1, in_channels, *grid) to logits or a tuple of them; it is not touched.
        in_channels: of the image.
        grid: D, H, W in voxels.
        dtype: of weights and image; what a layer computes in float32 is counted as float32.
    """
    memory = _Memory()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with mode(model, True), fake, GPUKernels(), memory, fake_weights(model, dtype) as weights:
        for weight in weights:
            memory.leave_out(weight)
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(memory.leave_out_gradient)
        run(model, torch.empty(1, in_channels, *grid, dtype=dtype))
    return memory.peak_bytes()
