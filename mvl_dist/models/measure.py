"""What a model costs: FLOP, memory of its activations, time; and the paper's figures beside it.

FLOP and memory are counted with fake tensors: torch runs the step on shapes alone, so nothing is
allocated and 128^3 voxels through Llama-3.1-8B's block take seconds on any machine. A model may
hold meta tensors (see `WithoutWeights`).
"""

from __future__ import annotations

import math
import statistics
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

Shape3D = tuple[int, int, int]

# A forward longer than this is timed once: its noise is small beside it.
LONG_SECONDS = 5.0
REPEATS_CPU, REPEATS_CUDA, WARM_UPS_CUDA = 3, 20, 5


# ----------------------------------------------------------------------------- the paper's figures


@dataclass(frozen=True)
class PaperFigures:
    """What the paper prints for a model; None where it prints nothing.

    Attributes:
        parameters_m: all parameters in millions.
        trainable_m: trained ones in millions.
        gflop: of a sample's forward; about 4,000 times too low for the models with the block.
        ms: of a sample's inference on its A100.
    """

    parameters_m: float
    trainable_m: float | None
    gflop: float | None
    ms: float


# Tables 4 and 5; the sums of Table 5's two columns where Table 4 has no row.
PAPER_FIGURES = {
    "vit_baseline": PaperFigures(1.16, 1.16, None, 2.47),
    "vit_mlp": PaperFigures(220.45, None, 0.43, 5.75),
    "vit_depth": PaperFigures(223.24, None, 0.48, 5.86),
    "medvisionllama": PaperFigures(223.67, 5.43, 0.45, 6.48),
    "medvisionllama_linear": PaperFigures(224.90, 6.78, None, 7.32),
}


# ------------------------------------------------------------------------- weights without storage


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


# ------------------------------------------------------------------------------ a step on shapes


class _GPUKernels(TorchFunctionMode):
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
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    before = model.training
    model.train(training)
    try:
        with torch.set_grad_enabled(training):
            yield
    finally:
        model.train(before)


@contextmanager
def _fake_weights(model: nn.Module, dtype: torch.dtype) -> Iterator[list[torch.Tensor]]:
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


def _run(model: nn.Module, image: torch.Tensor) -> None:
    """A forward, in training mode with its backward."""
    logits = model(image)
    if model.training:
        outputs = logits if isinstance(logits, (tuple, list)) else (logits,)
        losses: list[torch.Tensor] = [_AnyLoss.apply(output) for output in outputs]
        torch.autograd.backward(losses, [loss.detach() for loss in losses])


# ------------------------------------------------------------------------------------------- FLOP


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
    with _mode(model, training), fake, _GPUKernels(), _fake_weights(model, torch.float32), counter:
        _run(model, torch.empty(1, in_channels, *grid))
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


# ----------------------------------------------------------------------------------------- memory


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
    Attention is counted as a flash kernel does it, its scores never stored (see `_GPUKernels`).

    Args:
        model: maps (1, in_channels, *grid) to logits or a tuple of them; it is not touched.
        in_channels: of the image.
        grid: D, H, W in voxels.
        dtype: of weights and image; what a layer computes in float32 is counted as float32.
    """
    memory = _Memory()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with _mode(model, True), fake, _GPUKernels(), memory, _fake_weights(model, dtype) as weights:
        for weight in weights:
            memory.leave_out(weight)
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(memory.leave_out_gradient)
        _run(model, torch.empty(1, in_channels, *grid, dtype=dtype))
    return memory.peak_bytes()


# ------------------------------------------------------------------------------------------- time


def milliseconds_per_sample(
    model: nn.Module, in_channels: int, grid: Shape3D, device: torch.device, dtype: torch.dtype
) -> float:
    """Median time of one sample's forward in eval mode, without gradients.

    On a GPU after warm-up, each run synchronised; on a CPU a first run that takes more than 5 s is
    taken as it is.

    Args:
        model: is moved to `device` and `dtype`, and its meta tensors are drawn at random.
        in_channels: of the image.
        grid: D, H, W in voxels.
        device: where it runs.
        dtype: of weights and image.
    """
    fill_weights(model, device, dtype)
    image = torch.randn(1, in_channels, *grid, device=device, dtype=dtype)
    cuda = device.type == "cuda"

    def seconds() -> float:
        started = time.perf_counter()
        model(image)
        if cuda:
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    with _mode(model, False):
        first = [seconds() for _ in range(WARM_UPS_CUDA if cuda else 1)][-1]
        if not cuda and first > LONG_SECONDS:
            return 1000 * first
        repeats = REPEATS_CUDA if cuda else REPEATS_CPU
        return 1000 * statistics.median(seconds() for _ in range(repeats))
