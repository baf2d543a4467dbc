"""`mvl train`: check a run in a second, then hand it to `accelerate launch`.

The same as `accelerate launch --config_file FILE mvl_dist/train.py ...`, with mistakes found
before any rank is started.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mvl_dist.config import parse
from mvl_dist.errors import UserError
from mvl_dist.launcher import (
    ROOT,
    check_gpus,
    check_precision,
    deepspeed_config,
    deepspeed_settings,
    default_launcher,
    launcher_config,
    machines,
    ranks_a_node,
    visible_gpus,
)
from mvl_dist.plan import make_plan, with_batch_for
from mvl_dist.stopping import StopRequest

STOPPED = 128  # what `launch` returns when it was told to stop; no process ends with it by itself


@dataclass(frozen=True)
class Nodes:
    """The nodes that train one run together, each of which calls `mvl train`.

    Attributes:
        rank: which of them this is, from 0.
        head: ADDRESS:PORT of the first one.
    """

    count: int
    rank: int
    head: str


ONE_NODE = Nodes(1, 0, "")


def _launch_flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("mvl train", add_help=False, exit_on_error=False)
    parser.add_argument(
        "--launcher",
        default="",
        metavar="NAME|FILE.yaml",
        help="an accelerate config, or the name of one in accelerate_configs/ (by the GPUs here)",
    )
    parser.add_argument(
        "--nodes",
        type=int,
        default=1,
        help="nodes that train this run together, with the launcher's ranks on each (1)",
    )
    parser.add_argument(
        "--node-rank",
        type=int,
        default=int(os.environ.get("SLURM_NODEID", "0")),
        help="which of the nodes this is, from 0 ($SLURM_NODEID)",
    )
    parser.add_argument("--head", default="", metavar="ADDRESS:PORT", help="of the first node")
    return parser


def _launch_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """What `mvl train` reads itself, and the run's own flags."""
    try:
        chosen, rest = _launch_flags().parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from error
    if chosen.nodes > 1 and not re.fullmatch(r".+:\d+", chosen.head):
        raise UserError(
            f"--nodes {chosen.nodes} --head '{chosen.head}': --head ADDRESS:PORT of the first node "
            "is needed; jobs/train.sbatch sets it"
        )
    if not 0 <= chosen.node_rank < max(chosen.nodes, 1):
        if chosen.nodes > 1:
            raise UserError(f"--node-rank {chosen.node_rank}: there are {chosen.nodes} nodes")
        chosen.node_rank = 0
    return chosen, rest


def main(argv: Sequence[str]) -> int:
    """Entry of `mvl train`."""
    chosen, rest = _launch_arguments(argv)
    if any(argument in ("-h", "--help") for argument in rest):
        print(_launch_flags().format_help())
        print("and the flags of the run:\n")
    plan = make_plan(parse(rest))
    nodes = Nodes(chosen.nodes, chosen.node_rank, chosen.head)
    with_batch_for(plan.config, world_size(chosen.launcher, nodes))
    status = _run(launch_command(chosen.launcher, "train.py", rest, nodes=nodes))
    return status if status in (0, STOPPED) else 1


def launch(launcher: str, script: str, arguments: Sequence[str]) -> int:
    """Run a script of mvl_dist under `accelerate launch`.

    Returns:
        The launcher's exit status; `STOPPED` if it did not end well after a signal to this process.

    Args:
        launcher: an accelerate config or its name; '' takes one by the GPUs here.

    Raises:
        UserError: no such config, or no GPU and no launcher asked for.
    """
    return _run(launch_command(launcher, script, arguments))


def launch_command(
    launcher: str,
    script: str,
    arguments: Sequence[str],
    ranks: int = 0,
    nodes: Nodes = ONE_NODE,
) -> list[str]:
    """The command line of `accelerate launch` for a script of mvl_dist.

    Args:
        launcher: an accelerate config or its name; '' takes one by the GPUs here.
        ranks: replaces the config's number of processes; 0 keeps it.
        nodes: more than one replace the config's number of machines.

    Raises:
        UserError: no such config, no GPU and no launcher asked for, or a config that cannot run
            here.
    """
    config_file = launcher_config(launcher or default_launcher())
    a_node = ranks_a_node(config_file)
    check_gpus(config_file, ranks or a_node)
    settings_file = deepspeed_config(config_file)
    check_precision(settings_file, deepspeed_settings(settings_file), gpus=bool(visible_gpus()))
    if nodes.count > 1:
        address, _, port = nodes.head.rpartition(":")
        where = [
            *("--num_machines", str(nodes.count), "--machine_rank", str(nodes.rank)),
            *("--main_process_ip", address, "--main_process_port", port),
            *("--num_processes", str(nodes.count * a_node)),
        ]
    else:
        # Several launches may stand on one machine; nodes must agree on a port instead.
        where = ["--main_process_port", "0"] if machines(config_file) == 1 else []
        where += ["--num_processes", str(ranks)] if ranks else []
    return [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(config_file)),
        *("--deepspeed_config_file", str(settings_file)),
        *where,
        str(ROOT / "mvl_dist" / script),
        *arguments,
    ]


def world_size(launcher: str, nodes: Nodes = ONE_NODE) -> int:
    """Ranks of a run over all nodes.

    Raises:
        UserError: no such config, or no GPU and no launcher asked for.
    """
    config_file = launcher_config(launcher or default_launcher())
    count = nodes.count if nodes.count > 1 else machines(config_file)
    return count * ranks_a_node(config_file)


def ranks_of(process: subprocess.Popen[Any]) -> list[Any]:
    """The ranks of a launch as psutil's processes; the launcher itself before it has any."""
    import psutil

    with contextlib.suppress(psutil.Error):
        launcher = psutil.Process(process.pid)
        return launcher.children() or [launcher]
    return []


def send_to_ranks(process: subprocess.Popen[Any], number: int) -> list[Any]:
    """Signal the ranks of a launch, which save and leave; the launcher would only write a trace."""
    import psutil

    reached = ranks_of(process)
    for rank in reached:
        with contextlib.suppress(psutil.Error):
            rank.send_signal(number)
    return reached


def start_launcher(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """Start `accelerate launch` so that signals reach its ranks through us alone.

    In a session of its own Ctrl-C does not reach it; SIGUSR1, which srun sends to every process of
    a task, would kill it before its ranks have saved.
    """
    return subprocess.Popen(
        command,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),
        **options,
    )


def _run(command: Sequence[str]) -> int:
    import psutil

    process = start_launcher(command)
    reached: list[Any] = []

    def forward(number: int, frame: Any) -> None:
        reached.extend(send_to_ranks(process, number))

    previous = {number: signal.signal(number, forward) for number in StopRequest.SIGNALS}
    try:
        status = process.wait()
        psutil.wait_procs(
            reached
        )  # a launcher that died of the signal leaves ranks that still save
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return STOPPED if status and reached else status
