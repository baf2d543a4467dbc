"""What `mvl study pack` refuses; test_slurm.py has it train, on two nodes at once."""

import subprocess
import sys
from pathlib import Path

from tests.system.launching import REPO, environment


def test_without_a_gpu_it_asks_how_many_to_run_on_the_cpu(tmp_path: Path) -> None:
    study = REPO / "studies" / "controls.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "mvl_dist.cli", "study", "pack", str(study)],
        env=environment(CUDA_VISIBLE_DEVICES=""),
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "error: no GPU here: pass --slots N --launcher cpu1 to train N runs on the CPU\n"
    )
