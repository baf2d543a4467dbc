"""Real servers for tests and benchmarks: PostgreSQL, and MLflow over a database."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.debian import require


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, address: str = "127.0.0.1") -> None:
    """Wait until somebody listens."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex((address, port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError(f"nobody listens on {address}:{port}")


class MLflowServer:
    """An MLflow server on a free loopback port, that can be killed and revived."""

    def __init__(self, folder: Path, database: str = "", workers: int = 1) -> None:
        self.folder, self.workers = folder, workers
        self.database = database or f"sqlite:///{folder / 'server.db'}"
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"),
                *("--port", str(self.port), "--workers", str(self.workers)),
                *("--backend-store-uri", self.database),
                *("--artifacts-destination", str(self.folder / "artifacts")),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            # Seven more processes that import MLflow, for jobs that nothing here asks for.
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )
        try:
            wait_for_port(self.port)
        except TimeoutError:
            self.kill()
            raise

    def kill(self) -> None:
        """kill -9 of all its processes."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def mlflow_server(folder: Path, database: str = "", workers: int = 1) -> Iterator[MLflowServer]:
    """A running MLflow server for the duration of a `with` block."""
    server = MLflowServer(folder, database, workers)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def postgres_program(name: str) -> str | None:
    """Path of one of PostgreSQL's programs; Debian keeps them out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(found[-1]) if found else None)


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL database for the duration of a `with` block; yields its SQLAlchemy address.

    Raises:
        NotInstalledError: PostgreSQL is missing and cannot be installed here.
    """
    if postgres_program("initdb") is None:
        require(["initdb"], ["postgresql"])
    initdb, program = postgres_program("initdb"), postgres_program("postgres")
    assert initdb
    assert program
    data, port = folder / "postgres", free_port()
    data.mkdir(parents=True)
    as_user = {}
    if os.geteuid() == 0:  # it refuses to run as root
        owner = next(e for e in pwd.getpwall() if e.pw_name in ("postgres", "nobody"))
        os.chown(data, owner.pw_uid, owner.pw_gid)
        for parent in (folder, *folder.parents):
            if parent.stat().st_uid == 0 and parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o011)
        as_user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": data}
    trust = ("--auth=trust", "--username=mvl", "--encoding=UTF8", "--no-sync")
    subprocess.run([initdb, f"--pgdata={data}", *trust], check=True, **quiet, **as_user)
    command = [program, "-D", str(data), "-p", str(port), "-k", str(data), "-h", "127.0.0.1"]
    process = subprocess.Popen(command, **quiet, **as_user)
    try:
        wait_for_port(port)
        yield f"postgresql+psycopg2://mvl@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
