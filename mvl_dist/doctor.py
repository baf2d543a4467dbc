"""`mvl doctor`: what this machine has, and what the main job still needs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from mvl_dist.config import RunConfig, StoreFlag, paper
from mvl_dist.errors import UserError
from mvl_dist.models.donors import KNOWN_DONORS, check_donor
from mvl_dist.place import StorePlace
from mvl_dist.store import read_manifest, task_names


@dataclass(frozen=True)
class Finding:
    """One line of the report; `missing` says what to do, '' where nothing is."""

    what: str
    found: str
    missing: str = ""


@dataclass(frozen=True)
class DoctorArguments:
    """Say what this machine has, and what the main job (preset paper, Task01) still needs."""

    store: StoreFlag = paper().data.store
    """Store to look for."""
    data: bool = False
    """Time instead how fast a task of the store comes as batches, and say what bounds it."""
    task: str = ""
    """With --data: the task; the store's only one if none is given."""
    workers: int = paper().data.workers
    """With --data: loader processes."""


def main(argv: Sequence[str]) -> int:
    """Entry of `mvl doctor`; 0 if the main job could start here, else 1."""
    arguments = tyro.cli(DoctorArguments, args=list(argv), prog="mvl doctor")
    if arguments.data:
        from mvl_dist.data_speed import report

        print("\n".join(report(arguments.store, arguments.task, arguments.workers)))
        return 0
    if arguments.task:
        raise UserError(f"--task {arguments.task}: is read with --data only")
    findings = [
        *packages(),
        *hardware(),
        triton(),
        deepspeed_ops(),
        slurm(),
        *donors(),
        store(arguments.store, paper()),
    ]
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        print(f"  {finding.what:{width}}  {finding.found}")
    missing = [finding for finding in findings if finding.missing]
    print()
    if not missing:
        print("nothing is missing: accelerate launch --config_file accelerate_configs/a100x8.yaml")
        return 0
    print("missing for the main job (MedVisionLlama, Task01, bf16 on CUDA):")
    for finding in missing:
        print(f"  {finding.what}: {finding.missing}")
    print("what runs without them: make train (two CPU ranks, phantom data, SmolLM2's block)")
    return 1


def packages() -> list[Finding]:
    """Versions of what the main job imports."""
    findings = []
    for name in ("torch", "deepspeed", "accelerate", "peft", "transformers", "zarr", "mlflow"):
        try:
            findings.append(Finding(name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(name, "absent", "pip install -c constraints.txt -e ."))
    return findings


def hardware() -> list[Finding]:
    """Cores, memory and GPUs."""
    import psutil
    import torch

    gib = psutil.virtual_memory().total / 2**30
    findings = [Finding("CPU", f"{os.cpu_count()} cores, {gib:.0f} GiB")]
    count = torch.cuda.device_count()
    if not count:
        return [
            *findings,
            Finding("GPU", "none", "a node with CUDA GPUs and a CUDA build of torch"),
        ]
    for index in range(count):
        about = torch.cuda.get_device_properties(index)
        memory = f"{about.total_memory / 2**30:.0f} GiB"
        findings.append(Finding(f"GPU {index}", f"{about.name}, {memory}"))
    bf16 = torch.cuda.is_bf16_supported()
    needs = "" if bf16 else "GPUs of the Ampere generation or later"
    return [*findings, Finding("bf16", "yes" if bf16 else "no", needs)]


def triton() -> Finding:
    """Whether the fused kernels' compiler is there."""
    if importlib.util.find_spec("triton") is None:
        return Finding("Triton", "absent (comes with CUDA builds of torch; not needed on CPU)")
    return Finding("Triton", importlib.metadata.version("triton"))


def deepspeed_ops() -> Finding:
    """What DeepSpeed would compile at its first use: a compiler and ninja, for offload only."""
    tools = [name for name in ("g++", "ninja", "nvcc") if shutil.which(name)]
    absent = [name for name in ("g++", "ninja", "nvcc") if name not in tools]
    text = f"compilers found: {', '.join(tools) or 'none'}"
    if absent:
        text += f"; absent: {', '.join(absent)} (only for DeepSpeed's own fused and CPU Adam)"
    return Finding("DeepSpeed ops", text)


def slurm() -> Finding:
    """Whether jobs can be submitted from here."""
    if shutil.which("sbatch") is None:
        return Finding("Slurm", "absent (only for jobs/)")
    try:
        done = subprocess.run(
            ["sinfo", "--noheader", "--format=%P %D nodes %t"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("Slurm", f"sbatch is here, sinfo fails ({type(error).__name__})")
    if done.returncode:
        return Finding("Slurm", f"sbatch is here, the controller does not answer: {done.stderr}")
    return Finding("Slurm", "; ".join(done.stdout.split("\n")[:3]))


def donors() -> list[Finding]:
    """Which known language models are here."""
    findings = []
    for name in KNOWN_DONORS:
        try:
            check_donor(name, (-1,))
            findings.append(Finding(f"donor {name}", "found"))
        except UserError as error:
            needed = name == paper().model.donor.source
            findings.append(Finding(f"donor {name}", "absent", str(error) if needed else ""))
    return findings


def store(path: StorePlace, config: RunConfig) -> Finding:
    """Which tasks the store holds, and whether the main job's is among them."""
    held = "none"
    try:
        held = ", ".join(task_names(path)) or held
        manifest = read_manifest(path, config.data.task)
    except UserError as error:
        return Finding("store", f"{path}: {held}", str(error))
    if manifest.grid != config.data.grid:
        size = " ".join(map(str, config.data.grid))
        return Finding("store", f"{path}: {held}", f"convert with --grid {size}")
    return Finding("store", f"{path}: {held}")
