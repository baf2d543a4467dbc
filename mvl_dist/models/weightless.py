"""Weights without storage: left out while a model is built, drawn at random to run it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class WithoutWeights(TorchFunctionMode):
    """While a model is built in this context, its layers' weights are meta tensors.

    Only `torch.empty` is sent to meta, which is what layers get their weights from: a builder that
    computes with a tensor's values (MONAI's drop-path rates) could not be built on meta as a whole.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def fill_weights(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move a model in place, drawing N(0, 0.02^2) for what is on meta.

    Drawn and not constant: a GPU multiplies constants faster, as fewer bits flip.
    """
    drawn: dict[torch.Tensor, nn.Parameter] = {}  # a weight of two layers stays one
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                if parameter not in drawn:
                    values = torch.empty(parameter.shape, device=device, dtype=dtype)
                    drawn[parameter] = nn.Parameter(
                        values.normal_(0, 0.02), parameter.requires_grad
                    )
                module._parameters[name] = drawn[parameter]
    model.to(device, dtype)
