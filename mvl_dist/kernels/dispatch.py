"""Which way an operation runs: torch's own, or the Triton kernel.

    torch    always torch (also what a process does that never calls `configure`)
    triton   always the kernel; arguments that it cannot take are an error
    auto     on a CPU torch; on CUDA both are timed on the first arguments of a kind, forward and
             backward, and the faster one runs from then on: a kernel that loses is never used

Under `auto` one rank measures and the others follow. They meet an operation for the first time
together only in a training step, so without gradients nothing is measured: what was picked for the
same operation at another batch size is used, or torch.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal, get_args

import torch

from mvl_dist.errors import UserError
from mvl_dist.kernels.picks import Pick, PickFile
from mvl_dist.kernels.trial import try_both

Policy = Literal["auto", "triton", "torch"]
POLICIES: tuple[str, ...] = get_args(Policy)


@dataclass
class Chooser:
    """What a process does with its operations.

    Attributes:
        leads: whether this process measures; the others take what `share` brings.
        share: the leader's value on every rank (a collective), given each rank's own.
        tell: is called once for every pick.
        picks: what was picked so far, by operation, dtypes, shapes and options.
        measured: kinds of devices on which `auto` measures.
    """

    policy: str = "torch"
    leads: bool = True
    share: Callable[[Pick | None], Pick | None] = lambda pick: pick
    tell: Callable[[Pick], None] = lambda pick: None
    picks: dict[Any, Pick] = field(default_factory=dict)
    measured: tuple[str, ...] = ("cuda",)
    _by_any_batch: dict[Any, Pick] = field(default_factory=dict)

    def run(self, operation: ModuleType, arguments: tuple[Any, ...], options: Any) -> Any:
        """Run an operation as the policy says."""
        if self.policy == "torch":
            return in_torch(operation)(*arguments, **options)
        tensors = [leaf for leaf in _leaves((*arguments, *options.values())) if _is_tensor(leaf)]
        if self.policy == "auto" and tensors[0].device.type not in self.measured:
            return in_torch(operation)(*arguments, **options)
        return self._choose(operation, tensors, arguments, options)

    def _choose(
        self, operation: ModuleType, tensors: list[Any], arguments: tuple[Any, ...], options: Any
    ) -> Any:
        if self.policy == "triton":
            why = operation.cannot(*arguments, **options)
            if why:
                raise UserError(
                    f"--kernels triton: {name_of(operation)} cannot run here ({why}); "
                    "--kernels auto takes torch where a kernel cannot run"
                )
            return operation.triton_fused(*arguments, **options)
        if self._pick(operation, tensors, arguments, options) == "triton":
            return operation.triton_fused(*arguments, **options)
        return in_torch(operation)(*arguments, **options)

    def _pick(self, operation: ModuleType, tensors: list[Any], *call: Any) -> str:
        name = name_of(operation)
        shapes = tuple((t.dtype, t.shape) for t in tensors)
        arguments, options = call
        leaves = _leaves((*arguments, *options.values()))
        settings = tuple(leaf for leaf in leaves if not _is_tensor(leaf))
        key = (name, shapes, settings)
        any_batch = (name, tuple((dtype, shape[1:]) for dtype, shape in shapes))
        pick = self.picks.get(key)
        if pick is None:
            if not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
                known = self._by_any_batch.get(any_batch)
                return known.way if known else "torch"
            mine = self._measure(operation, tensors, settings, *call) if self.leads else None
            pick = self.share(mine)
            assert pick is not None
            self.picks[key] = self._by_any_batch[any_batch] = pick
            self.tell(pick)
        return pick.way

    def _measure(
        self, operation: ModuleType, tensors: list[Any], settings: Any, *call: Any
    ) -> Pick:
        """The pick of the file of earlier runs, or of a trial that is then written there."""
        arguments, options = call
        what = " ".join(
            [f"{str(t.dtype)[6:]}[{','.join(map(str, t.shape))}]" for t in tensors]
            + [str(setting) for setting in settings]
        )
        pick = Pick(name_of(operation), what, "torch", operation.cannot(*arguments, **options))
        if pick.reason:
            return pick
        device = tensors[0].device
        file = PickFile(torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu")
        known = file.read(pick)
        if known:
            return known
        found = try_both(pick, in_torch(operation), operation.triton_fused, arguments, options)
        if not found.reason:  # what failed is tried again
            file.write(found)
        return found


def keep_out_of_graphs() -> None:
    """From now on kernels, and operations to be timed, stand between torch.compile's graphs.

    Not as a decorator: that would import torch's compiler, and Triton, into every process.
    """
    Chooser._choose = torch.compiler.disable(Chooser._choose)  # type: ignore[method-assign]


_chooser = Chooser()


def configure(policy: str, **settings: Any) -> None:
    """Set the policy of this process, and forget what was picked; see `Chooser`'s attributes.

    Raises:
        UserError: `triton` where no Triton kernel can run.
        ValueError: no such policy.
    """
    global _chooser
    if policy not in POLICIES:
        raise ValueError(f"kernels={policy}: {' or '.join(POLICIES)}")
    if policy == "triton":
        require_triton()
    _chooser = Chooser(policy, **settings)


@contextlib.contextmanager
def using(policy: str, **settings: Any) -> Iterator[Chooser]:
    """`configure` for the duration of a `with` block."""
    global _chooser
    before = _chooser
    try:
        configure(policy, **settings)
        yield _chooser
    finally:
        _chooser = before


def policy() -> str:
    """This process's policy."""
    return _chooser.policy


def run(operation: ModuleType, *arguments: Any, **options: Any) -> Any:
    """Run an operation of this package as the policy says.

    Raises:
        UserError: the policy is `triton`, and the kernel cannot take these arguments.
    """
    return _chooser.run(operation, arguments, options)


def composes(part: str, tensor: torch.Tensor, why_not: str) -> bool:
    """Whether a model's part is put together from this package's operations, or runs as written.

    Args:
        part: its name, for messages.
        tensor: what it is given.
        why_not: why it cannot be put together from them, '' if it can.

    Raises:
        UserError: the policy is `triton`, and it cannot.
    """
    if _chooser.policy == "torch" or (
        _chooser.policy == "auto" and tensor.device.type not in _chooser.measured
    ):
        return False
    if not why_not:
        return True
    if _chooser.policy == "triton":
        raise UserError(f"--kernels triton: {part}: {why_not}; use --kernels auto")
    if part not in _chooser.picks:  # every rank finds the same
        _chooser.picks[part] = Pick(part, "", "torch", why_not)
        _chooser.tell(_chooser.picks[part])
    return False


def require_triton() -> None:
    """Refuse `triton` where it cannot run at all.

    Raises:
        UserError: not installed, or no CUDA device; Triton's interpreter needs none.
    """
    if importlib.util.find_spec("triton") is None:
        raise UserError(
            "--kernels triton: Triton is not installed here: 'pip install -c constraints.txt "
            "triton' (it comes with CUDA builds of torch), or use --kernels auto"
        )
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        raise UserError(
            "--kernels triton: no CUDA device is visible here: start it on a GPU node ('mvl "
            "doctor' shows what a node has), or use --kernels torch"
        )


def name_of(operation: ModuleType) -> str:
    """An operation's name: its file's."""
    return operation.__name__.rpartition(".")[2]


def in_torch(operation: ModuleType) -> Callable[..., Any]:
    """The best plain PyTorch way of an operation."""
    way: Callable[..., Any] = getattr(operation, "torch_fast", operation.reference)
    return way


def _leaves(values: Any) -> Iterator[Any]:
    """Values without the tuples and lists around them; torch's own is slow beside an operation."""
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _leaves(value)
        else:
            yield value


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
