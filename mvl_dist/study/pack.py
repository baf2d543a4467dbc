"""`mvl study pack`: train open runs side by side on this machine's GPUs, the longest first.

Each run is a launch of its own, on one GPU or several, with its output in OUTPUT/logs/KEY.log. A
run that fails is started once more; what fails again is left to people. Any number of machines may
pack one study: a run is trained by whoever holds its lease.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from mvl_dist.errors import UserError
from mvl_dist.launch import STOPPED, launch_command, send_to_ranks, start_launcher
from mvl_dist.launcher import (
    deepspeed_config,
    deepspeed_settings,
    default_launcher,
    launcher_config,
    visible_gpus,
)
from mvl_dist.placement import Job, grouped, in_order
from mvl_dist.study.fit import least_gpus, memory_of_gpus_gib
from mvl_dist.study.grid import StudyRun
from mvl_dist.study.lease import holder, lease
from mvl_dist.study.plan import cost_model, job_of, labelled_cases
from mvl_dist.study.selection import (
    Selection,
    arguments_of,
    found_states,
    load,
    mark_as_failed,
)
from mvl_dist.study.status import is_open

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
POLL_SECONDS = 0.5
# How long a list of open runs is believed while other machines train them too.
REFRESH_SECONDS = 60.0
# How long a launch asks for an MLflow server that is away, and how often we do meanwhile.
SERVER_SECONDS = 900
ASK_AGAIN_SECONDS = 10.0
ATTEMPTS = 2


@dataclass(frozen=True)
class Pack(Selection):
    """Train the open runs side by side on this machine, longest first, until none is open."""

    launcher: str = ""
    """An accelerate config or its name; its number of processes is replaced by a run's GPUs
    (default by the GPUs here)."""
    slots: int = 0
    """Runs at once: 0 takes the GPUs here. Without GPUs: say how many CPU launches."""
    gpu_gib: float = 0.0
    """GiB of a GPU: runs that need more get several GPUs (default: as nvidia-smi says)."""
    nodes: int = 1
    """Machines that pack this study together; the sizes of groups depend on it."""


@dataclass
class Launched:
    """A run in training, and the slots it has."""

    run: StudyRun
    process: subprocess.Popen[bytes]
    slots: tuple[int, ...]
    log: Path
    claim: contextlib.ExitStack


def pack(options: Pack) -> int:
    """Train until nothing is open; returns 0, 1 if runs failed, `STOPPED` if told to stop.

    Raises:
        UserError: no GPU and no `--slots`.
    """
    gpus = visible_gpus()
    slots = options.slots or len(gpus)
    if not slots:
        raise UserError("no GPU here: pass --slots N --launcher cpu1 to train N runs on the CPU")
    if gpus and slots > len(gpus):
        raise UserError(f"--slots {slots}: {len(gpus)} GPUs are visible here")
    packer = Packer(options, slots, gpus)
    previous = {number: signal.signal(number, packer.stop) for number in STOP_SIGNALS}
    try:
        return packer.work()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _claim(run: StudyRun) -> str:
    """Name of the lease that a packer has on a run while it starts and watches its launch."""
    return f"pack-{run.key}"


class Packer:
    """Keeps this machine's slots full."""

    def __init__(self, options: Pack, slots: int, gpus: tuple[str, ...]) -> None:
        self.options, self.gpus, self.slots = options, gpus, slots
        self.study = load(options)
        # Only the order counts here, so any speed does where nothing was measured.
        model, _, _ = cost_model(self.study, found_states(self.study, options), 1.0)
        cases = labelled_cases(self.study.runs)
        least = self._least_gpus()
        self.jobs = {
            run.key: job_of(run, model, cases, least_gpus=least.get(run.key, 1))
            for run in self.study.runs
        }
        self.free = list(range(slots))
        self.running: list[Launched] = []
        self.attempts: Counter[str] = Counter()
        self.started = 0
        self.done = 0
        self.stopping = 0
        self.broken = ""
        self.unanswered = False

    def _least_gpus(self) -> dict[str, int]:
        """GPUs that each run needs for its memory; nothing on the CPU, whose memory is common."""
        if not self.gpus or os.environ.get("DS_ACCELERATOR") == "cpu":
            return {}
        gpu_gib = self.options.gpu_gib or memory_of_gpus_gib()
        if not gpu_gib:
            raise UserError("how much memory a GPU has cannot be asked: no nvidia-smi; --gpu-gib N")
        launcher = launcher_config(self.options.launcher or default_launcher())
        settings = deepspeed_settings(deepspeed_config(launcher))
        return {run.key: least_gpus(run, settings, gpu_gib, self.slots) for run in self.study.runs}

    def work(self) -> int:
        """Start, watch and restart launches until nothing is open."""
        waiting: list[tuple[Job, StudyRun]] = []
        listed = -REFRESH_SECONDS
        while True:
            ended = self._collect()
            if self.stopping:
                if not self.running:
                    if self.broken:
                        raise UserError(self.broken)
                    return STOPPED
            elif self.free and (ended or time.monotonic() - listed > self._refresh_seconds()):
                waiting, listed = self._asked(), time.monotonic()
            if not self.stopping:
                while waiting and waiting[0][0].gpus <= len(self.free):
                    if self.options.limit and self.started >= self.options.limit:
                        waiting = []
                        break
                    self._start(*waiting.pop(0))
                if not waiting and not self.running and not self.unanswered:
                    return self._end()
            time.sleep(POLL_SECONDS)

    def _refresh_seconds(self) -> float:
        return ASK_AGAIN_SECONDS if self.unanswered else REFRESH_SECONDS

    def _asked(self) -> list[tuple[Job, StudyRun]]:
        """Open runs now; none for the time that MLflow, which has answered once, is away."""
        try:
            found = self._open()
        except UserError as error:
            if not self.unanswered:
                print(f"note: {error}; asking again", flush=True)
            self.unanswered = True
            return []
        self.unanswered = False
        return found

    def _open(self) -> list[tuple[Job, StudyRun]]:
        """Open runs with the slots each shall have, in the order in which they are started."""
        here = {launched.run.key for launched in self.running}
        found = found_states(self.study, self.options)
        runs = {
            run.key: run
            for run in self.study.runs
            if run.key not in here
            and not holder(self.options.output, _claim(run))
            and self.attempts[run.key] < ATTEMPTS
            and is_open(
                found[run.key].state, self.options.retry_failed or self.attempts[run.key] > 0
            )
        }
        jobs = [self.jobs[key] for key in runs]
        sized = grouped(jobs, self.options.nodes, self.slots)
        return [(job, runs[job.name]) for job in in_order(sized)]

    def _start(self, job: Job, run: StudyRun) -> None:
        options = self.options
        # The run's own lease is taken by its launch, which needs seconds to get there; without
        # this one every machine would start the same longest runs at the same moment.
        claim = contextlib.ExitStack()
        if not claim.enter_context(lease(options.output, _claim(run))):
            claim.close()
            return
        mine = tuple(self.free[: job.gpus])
        del self.free[: job.gpus]
        log = options.output / "logs" / f"{run.key}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        alone = replace(
            options, where=(f"key={run.key}",), limit=1, retry_failed=self.attempts[run.key] > 0
        )
        command = launch_command(
            options.launcher, "train_study.py", arguments_of(alone), ranks=job.gpus
        )
        environment = {"MVL_MLFLOW_WAIT_SECONDS": str(SERVER_SECONDS), **os.environ}
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus[slot] for slot in mine)
        with log.open("ab") as file:
            process = start_launcher(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment
            )
        self.running.append(Launched(run, process, mine, log, claim))
        self.started += 1
        self._say(f"started on slot {','.join(map(str, mine))}", run)

    def _collect(self) -> bool:
        """Take in the launches that ended; whether there were any."""
        ended = [launched for launched in self.running if launched.process.poll() is not None]
        for launched in ended:
            self.running.remove(launched)
            launched.claim.close()
            self.free = sorted([*self.free, *launched.slots])
            run, status = launched.run, launched.process.returncode
            if status == 0:
                self.done += 1
                self._say("ended", run)
            elif self.stopping:
                self._say("stopped", run)
            else:
                self.attempts[run.key] += 1
                self._say(f"FAILED (status {status}, see {launched.log})", run)
                if self.attempts[run.key] == ATTEMPTS:
                    self._give_up(launched)
        return bool(ended)

    def _give_up(self, launched: Launched) -> None:
        """Leave a run to people; stop altogether if it is not this run's fault."""
        try:
            if mark_as_failed(launched.run, self.options):
                return
            self.broken = f"{launched.run} ended twice before it began: see {launched.log}"
        except UserError as error:
            self.broken = str(error)
        self.stop(signal.SIGTERM, None)

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Pass a signal on: the ranks save and leave."""
        self.stopping = number
        for launched in self.running:
            send_to_ranks(launched.process, number)

    def _end(self) -> int:
        failed = sum(count >= ATTEMPTS for count in self.attempts.values())
        print(f"{self.study.name}: {self.done} launches ended, {failed} runs failed twice")
        return int(failed > 0)

    def _say(self, what: str, run: StudyRun) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {run} ({run.key}): {what}", flush=True)
