"""Compile Triton kernels ahead of time for GPUs that are not here.

It finds what the interpreter does not: wrong types, shared memory beyond what a multiprocessor
has, registers that spill. Needs a process without TRITON_INTERPRET.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes that one program can have, by compute capability (CUDA programming guide, table 27)."""


def compile_for(
    kernel: Any,
    signature: dict[str, str],
    constants: dict[str, Any],
    capability: int,
    num_warps: int = 4,
    num_stages: int = 2,
) -> Any:
    """Triton's CompiledKernel of a @triton.jit function.

    Args:
        signature: argument -> type, e.g. `*bf16`, `i32`, `fp32`; `*` types are taken as aligned
            to 16 bytes, as torch's memory is; `i32:16` is a multiple of 16.
        constants: the values of its constexpr arguments.
        capability: 80 for A100, 90 for H100 and H200.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, kind in enumerate(types.values())
        if kind.startswith("*") or kind.endswith(":16")
    }
    types = {name: kind.removesuffix(":16") for name, kind in types.items()}
    source = ASTSource(kernel, types, constants, aligned)
    options = {"num_warps": num_warps, "num_stages": num_stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def cuobjdump(compiled: Any, flag: str) -> str:
    """What the wheel's cuobjdump prints of a compiled kernel."""
    import subprocess

    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [tool, flag, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def usage(compiled: Any) -> dict[str, int]:
    """Shared memory (bytes), registers and spilled registers (bytes) a thread of a kernel."""
    import re

    shown = cuobjdump(compiled, "--dump-resource-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+)", shown)
    assert found, shown
    registers, spilled = map(int, found.groups())
    return {"shared": compiled.metadata.shared, "registers": registers, "spilled": spilled}
