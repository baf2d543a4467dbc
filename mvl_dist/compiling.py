"""`--compile`: torch.compile around the kernels, inside DeepSpeed's engine."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile

from torch import nn

from mvl_dist.errors import UserError
from mvl_dist.kernels import dispatch

MOST_GRAPHS = 64
"""Of one function: operations x shapes x training or not."""
COMPILERS = ("g++", "c++", "clang++")


def check_compile(zero_stage: int, device: str) -> None:
    """Refuse what torch.compile could not run, before anything is written.

    Args:
        device: kind of device that the training runs on, `cuda` or `cpu`.

    Raises:
        UserError: ZeRO-3, no compiler for the device, or a folder that its command would break at.
    """
    if zero_stage == 3:
        raise UserError(
            "--compile True does not go with ZeRO-3, which gathers weights between "
            "graphs: use a DeepSpeed config of stage 0 to 2, or leave --compile out"
        )
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError(
            "--compile True: torch.compile needs Triton on a GPU ('pip install -c constraints.txt "
            "triton'; it comes with CUDA builds of torch): install it, or leave --compile out"
        )
    if not any(map(shutil.which, COMPILERS)):
        raise UserError(
            f"--compile True: torch.compile needs a C++ compiler ({', '.join(COMPILERS)}), and "
            "none is in PATH: load one (on a cluster 'module load gcc'), or leave --compile out"
        )
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or tempfile.gettempdir()
    if any(map(str.isspace, folder)):
        raise UserError(
            f"--compile True: torch.compile writes to '{folder}', and the command that it compiles "
            "with breaks at a space: set TORCHINDUCTOR_CACHE_DIR to a folder without one"
        )


def compile_in_place(model: nn.Module, backend: str = "inductor") -> None:
    """Compile a model's forward at its first call; its parameters and their names stay.

    Each kind of input (training batch, validation case) is compiled by itself, its sizes fixed.
    """
    import torch._dynamo

    # Every operation that runs as a kernel enters `dispatch.run` between two graphs.
    torch._dynamo.config.recompile_limit = MOST_GRAPHS
    dispatch.keep_out_of_graphs()
    model.compile(dynamic=False, backend=backend)
