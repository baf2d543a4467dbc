"""Ranks: the only module that asks which one this is.

Before torch is imported the launcher's environment variables tell the rank; afterwards Accelerate
does. A user's mistake on a launched rank is printed once, and the launcher ends without its trace.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from mvl_dist.cache_folder import leave_all
from mvl_dist.errors import UserError
from mvl_dist.launcher import check_precision, deepspeed_settings

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

T = TypeVar("T")
WAIT_FOR_RANK_0_SECONDS = 5.0


def env_rank() -> int:
    """Global rank as the launcher set it; 0 without a launcher. Needs no torch."""
    return int(os.environ.get("RANK", "0"))


def is_launched() -> bool:
    """Whether a launcher (accelerate launch, torchrun) started this process."""
    return "LOCAL_RANK" in os.environ


def say(message: str, file: Any = None) -> None:
    """Print on rank 0 alone."""
    if env_rank() == 0:
        print(message, file=file or sys.stdout, flush=True)


def fail(error: UserError) -> NoReturn:
    """Print a user's mistake once and end with status 1, peers and launcher included.

    torch's launcher answers a rank that fails with a trace of its own, and ranks that wait for it
    in a collective add theirs; together they bury the one line that helps. So the failing rank
    ends its siblings and the launcher by signals. Most mistakes are found by all ranks alike:
    rank 0 speaks at once, the others only if it did not.
    """
    sys.stdout.flush()
    if is_launched() and env_rank() != 0:
        time.sleep(WAIT_FOR_RANK_0_SECONDS)
        print(f"error (rank {env_rank()}): {error}", file=sys.stderr, flush=True)
    else:
        print(f"error: {error}", file=sys.stderr, flush=True)
    end_launch(1)


def end_launch(status: int) -> NoReturn:
    """End this rank, its siblings and the launcher, without the launcher's trace."""
    patience_s = 0.0
    if is_launched() and "TORCHELASTIC_RUN_ID" in os.environ:
        import psutil

        with contextlib.suppress(psutil.Error):
            launcher = psutil.Process(os.getppid())
            siblings = [child for child in launcher.children() if child.pid != os.getpid()]
            launcher.suspend()  # or it would see a sibling die and write about it
            for sibling in siblings:
                sibling.kill()
            launcher.send_signal(signal.SIGUSR2)
            launcher.resume()
            patience_s = 1.0
    leave_all(patience_s)  # os._exit would leave the node's cache behind
    # Not sys.exit: interpreter shutdown may wait for peers in a collective that never comes.
    os._exit(status)


@contextlib.contextmanager
def only_rank_0_prints() -> Iterator[None]:
    """Silence the other ranks where all would print the same."""
    if env_rank() == 0:
        yield
        return
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def start(timeout_minutes: float = 30.0) -> Accelerator:
    """Join the process group with DeepSpeed: nccl where there is CUDA, gloo where there is not.

    Raises:
        UserError: not started by `accelerate launch` with a DeepSpeed config. Accelerate would
            train without ZeRO then, and say nothing.
    """
    if not is_launched() or os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() != "true":
        raise UserError(
            "no DeepSpeed launcher: run 'accelerate launch --config_file "
            "accelerate_configs/cpu2.yaml mvl_dist/train.py ...' (or gpu1, a100x8); a config with "
            "'distributed_type: DEEPSPEED' and 'use_cpu: false' is needed"
        )
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1"):
        raise UserError(
            "ACCELERATE_USE_CPU is set: Accelerate would run plain DDP without ZeRO; set "
            "'use_cpu: false' in the accelerate config (CPU ranks use gloo all the same)"
        )
    settings_file = Path(os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none"))
    settings = deepspeed_settings(settings_file)
    import torch

    if torch.cuda.is_available():
        if int(os.environ["LOCAL_RANK"]) >= torch.cuda.device_count():
            raise UserError(
                f"rank {env_rank()} has no GPU: {torch.cuda.device_count()} are visible, "
                f"{os.environ.get('LOCAL_WORLD_SIZE')} ranks were started on this machine; "
                "set num_processes in the accelerate config to match"
            )
    else:
        check_precision(settings_file, settings, gpus=False)
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns on every rank
        _without_compiled_collectives()
    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.utils import DistributedType

    # torch 2.13 renamed collectives that DeepSpeed 0.19 calls by their old names.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    accelerator = Accelerator(
        kwargs_handlers=[
            InitProcessGroupKwargs(
                backend="nccl" if torch.cuda.is_available() else "gloo",
                timeout=datetime.timedelta(minutes=timeout_minutes),
            )
        ]
    )
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        raise UserError(f"Accelerate started {accelerator.distributed_type}, not DeepSpeed")
    return accelerator


def _without_compiled_collectives() -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce, which only inference uses.

    torch guards a compilation by a lock file. A rank that is killed while it holds it leaves the
    file behind, and every later run of this user on this machine waits for it, without a word.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


@contextlib.contextmanager
def joined() -> Iterator[tuple[int, int]]:
    """This process's rank and their number, joined by gloo where torchrun started several.

    For work that shares objects, not gradients: no DeepSpeed, one GPU a rank.
    """
    import torch
    import torch.distributed as dist

    if not is_launched():
        yield 0, 1
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("gloo")
    yield dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()


def gather_objects(items: Sequence[T]) -> list[T]:
    """Concatenate every rank's list, in rank order, on every rank."""
    import torch.distributed as dist

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return list(items)
    lists: list[list[T]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(lists, list(items))
    return [item for part in lists for item in part]


def from_rank_0(value: T) -> T:
    """Rank 0's value on every rank."""
    import torch.distributed as dist

    box = [value]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def sums_and_largest(values: Tensor, own: float) -> tuple[list[float], float]:
    """Sums over the ranks of some values, and the largest of one more, by a single collective.

    Args:
        values: (n,) float32 on the ranks' device.
        own: this rank's one, which travels in a place of its own so that summing keeps it apart.
    """
    import torch
    import torch.distributed as dist

    ranks = torch.zeros(dist.get_world_size(), dtype=values.dtype, device=values.device)
    ranks[dist.get_rank()] = own
    report = torch.cat([values, ranks])
    dist.all_reduce(report)
    reduced = report.tolist()
    return reduced[: len(values)], max(reduced[len(values) :])


def close() -> None:
    """Leave the process group, so that the launcher sees a clean end."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
