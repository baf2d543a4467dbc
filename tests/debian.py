"""Debian's packages for tests that run a real program: installed where root may, else said."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence


class NotInstalledError(Exception):
    """A program is missing and cannot be installed here; says with which command it can be."""


def require(programs: Sequence[str], packages: Sequence[str]) -> None:
    """Install packages unless all their programs are in the path.

    Raises:
        NotInstalledError: some are missing, and this user or machine cannot install them.
    """
    if all(map(shutil.which, programs)):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise NotInstalledError(f"not installed: apt-get install {' '.join(packages)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    for before in (None, ["apt-get", "update"]):
        if before:
            subprocess.run(before, env=environment, capture_output=True, check=False)
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode == 0:
            return
    raise NotInstalledError(
        f"'{' '.join(command)}' failed: {done.stderr.strip().splitlines()[-1:]}"
    )
