"""A model's step, and what it needs to run on shapes alone: fake weights, and CUDA's kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode


class GPUKernels(TorchFunctionMode):
    """Attention and dropout as CUDA's kernels do them, though the fake tensors lie on the CPU.

    CUDA's flash attention drops out without storing the scores, and its dropout keeps a mask of a
    byte; with dropout the CPU stores the T x T scores, and a mask as wide as the values. Dropout of
    the attention is therefore set to 0, which changes neither FLOP nor memory of a flash kernel.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            # Order of arguments: query, key, value, attn_mask, dropout_p, ...
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
            kwargs.pop("dropout_p", None)
        elif func is F.dropout:
            # F.dropout hands itself on with all its options named.
            values, rate = args[0], kwargs["p"] if kwargs["training"] else 0.0
            return torch.native_dropout(values, rate, True)[0] if rate else values
        return func(*args, **kwargs)


class _AnyLoss(torch.autograd.Function):
    """Stands for a loss: its backward gives each logit a gradient, and itself it holds no byte."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor) -> torch.Tensor:
        ctx.shape = logits.shape
        return logits.new_empty(0)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.new_empty(ctx.shape)


@contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Training mode with gradients, or eval mode without, until the block ends."""
    before = model.training
    model.train(training)
    try:
        with torch.set_grad_enabled(training):
            yield
    finally:
        model.train(before)


@contextmanager
def fake_weights(model: nn.Module, dtype: torch.dtype) -> Iterator[list[torch.Tensor]]:
    """Lend a model stand-ins for its parameters and buffers, inside a FakeTensorMode.

    By hand, because `torch.func.functional_call` leaves its stand-ins in a module that a model
    holds under two names, as MONAI's DynUNet does.
    """
    fakes: dict[torch.Tensor, torch.Tensor] = {}
    lent: list[tuple[dict[str, Any], str, torch.Tensor]] = []
    for module in model.modules():
        for owner in (module._parameters, module._buffers):
            for name, tensor in owner.items():
                if tensor is not None:
                    lent.append((owner, name, tensor))
    for _, _, tensor in lent:
        if tensor not in fakes:
            kind = dtype if tensor.is_floating_point() else tensor.dtype
            fakes[tensor] = torch.empty(tensor.shape, dtype=kind)
            fakes[tensor].requires_grad_(tensor.requires_grad)
    try:
        for holder, name, tensor in lent:
            holder[name] = fakes[tensor]
        yield list(fakes.values())
    finally:
        for holder, name, tensor in lent:
            holder[name] = tensor


def run(model: nn.Module, image: torch.Tensor) -> None:
    """A forward, in training mode with its backward."""
    logits = model(image)
    if model.training:
        outputs = logits if isinstance(logits, (tuple, list)) else (logits,)
        losses: list[torch.Tensor] = [_AnyLoss.apply(output) for output in outputs]
        torch.autograd.backward(losses, [loss.detach() for loss in losses])
