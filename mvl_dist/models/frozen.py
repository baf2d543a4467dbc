"""The donor's linears held in eight bits, as `--frozen-precision fp8|int8` asks.

The bytes stay a frozen parameter of the linear's name and shape, so counts, checkpoints and the
donor's names are those of a block in the model's precision. To torch they and their factors are
integers: what casts a model (`bfloat16()`, DeepSpeed) leaves integers as they are.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mvl_dist.errors import UserError
from mvl_dist.kernels import dispatch, fp8_linear, int8_linear

OLDEST_WITH_FP8 = (8, 9)
FP8_MULTIPLE = 16


class EightBitLinear(nn.Module):
    """A frozen linear (N, K) without its float weight: (..., K) -> (..., N) in the input's dtype.

    Attributes:
        weight: (N, K), one byte each, frozen.
        bias: (N,) or None, the linear's own.
    """

    precision: str

    def __init__(self, values: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(values, requires_grad=False)
        self.bias = bias

    def keep(self, name: str, values: Tensor) -> None:
        """Hold a buffer that no checkpoint does: the donor gives it again."""
        self.register_buffer(name, values, persistent=False)


class Int8Linear(EightBitLinear):
    """As `kernels.int8_linear`: widened to the input's dtype for each product."""

    precision = "int8"
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        frozen = int8_linear.freeze(linear.weight)
        super().__init__(frozen.values, linear.bias)
        self.keep("scale", frozen.scale.view(torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        frozen = int8_linear.FrozenInt8(self.weight, self.scale.view(torch.float32))
        return int8_linear.torch_fast(x, frozen, self.bias)


class FP8Linear(EightBitLinear):
    """As `kernels.fp8_linear`: products of FP8 values, which bfloat16 has on Ada and Hopper."""

    precision = "fp8"
    scale: Tensor
    transposed: Tensor
    transposed_scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        frozen = fp8_linear.freeze(linear.weight)
        super().__init__(frozen.weight.values.view(torch.uint8), linear.bias)
        self.keep("scale", frozen.weight.scale.view(torch.int32))
        self.keep("transposed", frozen.transposed.values.view(torch.uint8))
        self.keep("transposed_scale", frozen.transposed.scale.view(torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N).

        Raises:
            UserError: the GPU has no FP8.
        """
        check_device(self.precision, x.device)
        frozen = fp8_linear.FrozenFP8(
            _quantised(self.weight, self.scale),
            _quantised(self.transposed, self.transposed_scale),
        )
        return dispatch.run(fp8_linear, x, frozen, self.bias)


HELD = {kind.precision: kind for kind in (FP8Linear, Int8Linear)}


def hold(block: nn.Module, precision: str) -> None:
    """Replace a block's frozen linears, in place; adapters and norms stay as they are.

    Args:
        precision: `model` leaves the block alone.

    Raises:
        UserError: a linear whose sizes have no FP8 product.
    """
    if precision == "model":
        return
    for parent, name, linear in list(_frozen_linears(block)):
        n, k = linear.weight.shape
        if precision == "fp8" and (n % FP8_MULTIPLE or k % FP8_MULTIPLE):
            raise UserError(
                f"--frozen-precision fp8: the donor's {name} is {n} x {k}, and FP8 products want "
                f"multiples of {FP8_MULTIPLE}: use int8"
            )
        setattr(parent, name, HELD[precision](linear))


def _frozen_linears(block: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for parent in block.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear) and not child.weight.requires_grad:
                yield parent, name, child


def check_launch(precision: str, zero_stage: int, device: torch.device) -> None:
    """Refuse what a training could not run, before anything is written.

    Raises:
        UserError: ZeRO-3, or FP8 on a GPU without it.
    """
    if precision != "model" and zero_stage == 3:
        raise UserError(
            f"--frozen-precision {precision} does not go with ZeRO-3, which would partition the "
            "block's bytes without their factors: use a DeepSpeed config of stage 0 to 2, or "
            "leave --frozen-precision out"
        )
    check_device(precision, device)


def check_device(precision: str, device: torch.device) -> None:
    """Refuse a GPU without FP8.

    Raises:
        UserError: it is older than sm_89.
    """
    if precision != "fp8" or device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_WITH_FP8:
        raise UserError(
            f"--frozen-precision fp8: {torch.cuda.get_device_name(device)} is "
            f"sm_{capability[0]}{capability[1]}, and FP8 needs sm_89 or newer (Ada, Hopper): use "
            "int8, which holds the block in half of bfloat16's memory on every GPU"
        )


def _quantised(values: Tensor, scale: Tensor) -> fp8_linear.Quantised:
    return fp8_linear.Quantised(values.view(fp8_linear.FP8), scale.view(torch.float32))
