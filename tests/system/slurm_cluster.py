"""A real Slurm on this machine: slurmctld, munge, two nodes of two 'GPUs', one node for services.

    python -m tests.system.slurm_cluster FOLDER    # until Ctrl-C; then: export SLURM_CONF=...

Installs Debian's slurm-wlm where it is missing and this user is root. The nodes have addresses of
their own (127.0.0.2 to .4) and links to other devices as GPUs, so that those are scheduled.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from tests.debian import NotInstalledError, require
from tests.servers import free_port

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
PACKAGES = ("slurm-wlm", "munge")
NODES = ("n1", "n2", "service")
GPUS = 2
# munge's socket and Slurm's own configuration beside nobody else's.
CONFIGURATION = """\
ClusterName=mvl
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/ctld
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/%n.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
KillWait=60
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.{address} Port={port} CPUs=4 "
    "RealMemory=4000{gpus}\n"
)
PARTITIONS = """\
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE
PartitionName=service Nodes=service MaxTime=INFINITE
"""


class Cluster:
    """The running daemons of one cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configuration = folder / "slurm.conf"
        self.daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start everything and wait until both nodes are idle."""
        if os.geteuid() != 0:
            raise NotInstalledError("the daemons of this cluster want root")
        folder, host = self.folder, socket.gethostname()
        for name in ("ctld", *NODES):
            (folder / name).mkdir(parents=True)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        text = CONFIGURATION.format(host=host, port=free_port(), folder=folder)
        for number, name in enumerate(NODES):
            gpus = "" if name == "service" else f" Gres=gpu:{GPUS}"
            text += NODE.format(
                name=name, host=host, address=number + 2, port=free_port(), gpus=gpus
            )
        self.configuration.write_text(text + PARTITIONS)
        for number in range(GPUS):
            (folder / f"gpu{number}").symlink_to(("/dev/null", "/dev/zero")[number])
        (folder / "gres.conf").write_text(
            f"NodeName=n[1-2] Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n"
        )
        self._daemon(
            *("munged", "--force", "--foreground", f"--key-file={key}"),
            f"--socket={folder}/munge.sock",
            *(f"--{name}={folder}/munge.{name[:3]}" for name in ("pid-file", "log-file")),
            f"--seed-file={folder}/munge.seed",
        )
        self._daemon("slurmctld", "-D", "-f", str(self.configuration))
        for name in NODES:
            self._daemon("slurmd", "-D", "-N", name, "-f", str(self.configuration))
        deadline = time.monotonic() + 60
        while self.call("sinfo", "-N", "-h", "-o", "%T").split() != ["idle"] * len(NODES):
            if time.monotonic() > deadline:
                raise TimeoutError(self.call("sinfo", "-Nl") + self.log())
            time.sleep(0.5)

    def _daemon(self, *command: str) -> None:
        environment = {**os.environ, "SLURM_CONF": str(self.configuration)}
        with (self.folder / "daemons.log").open("ab") as log:
            self.daemons.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
        time.sleep(0.5)

    def call(self, *command: str, **changes: str) -> str:
        """Output of a Slurm command, '' where it failed."""
        done = self.run(command, **changes)
        return done.stdout if done.returncode == 0 else ""

    def run(self, command: Sequence[str], **changes: str) -> subprocess.CompletedProcess[str]:
        """A Slurm command as a user calls it."""
        environment = {**os.environ, "SLURM_CONF": str(self.configuration), **changes}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    def states(self, job: str) -> dict[str, str]:
        """State of a job by its number, of an array's tasks by NUMBER_TASK."""
        shown = self.call("scontrol", "show", "job", job, "--oneliner")
        found = {}
        for line in shown.splitlines():
            fields = dict(word.partition("=")[::2] for word in line.split())
            if "JobId" in fields:
                task = fields.get("ArrayTaskId", "")
                found[f"{fields['ArrayJobId']}_{task}" if task else fields["JobId"]] = fields[
                    "JobState"
                ]
        return found

    def log(self) -> str:
        """What the daemons wrote."""
        files = [*self.folder.glob("*.log")]
        return "\n".join(f"--- {file.name}\n{file.read_text()[-3000:]}" for file in files)

    def stop(self) -> None:
        """End all jobs, then the daemons."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.call("scancel", "--user", "root", "--signal=KILL", "--full")
            self.call("scancel", "--user", "root")
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(self.daemons):
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
        for process in psutil.process_iter():  # what proctrack/linuxproc has lost sight of
            with contextlib.suppress(psutil.Error):
                if process.environ().get("SLURM_CONF") == str(self.configuration):
                    process.kill()


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster for the duration of a `with` block.

    Raises:
        NotInstalledError: it cannot be installed or started here.
    """
    require(PROGRAMS, PACKAGES)
    running = Cluster(folder)
    try:
        running.start()
        yield running
    finally:
        running.stop()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with cluster(Path(sys.argv[1]).resolve()) as started:
        print(f"export SLURM_CONF={started.configuration}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
