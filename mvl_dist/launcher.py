"""What an accelerate config and its DeepSpeed config ask for, checked before a rank is started."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mvl_dist.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "accelerate_configs"
STAGES = (0, 1, 2, 3)
# DeepSpeed ignores a key that it does not know; of these a misspelt one would change the run.
WATCHED_KEYS = ("zero_optimization", "bf16", "fp16", "gradient_accumulation_steps")


def launcher_config(name: str) -> Path:
    """Path of an accelerate config: a file, or the name of one in accelerate_configs/.

    Raises:
        UserError: no such file.
    """
    for path in (Path(name), CONFIGS / f"{name}.yaml"):
        if path.is_file():
            return path.resolve()
    known = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    raise UserError(f"--launcher {name}: no such accelerate config; known: {known}, or give a file")


def default_launcher() -> str:
    """`a100x8` or `gpu1` by the number of NVIDIA devices.

    Raises:
        UserError: there is none. Training on the CPU must be asked for.
    """
    devices = [path for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit()]
    if not devices:
        raise UserError("no GPU here: pass --launcher cpu2 to train on two CPU ranks")
    return "a100x8" if len(devices) >= 8 else "gpu1"


def visible_gpus() -> tuple[str, ...]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is not None:
        return tuple(name for name in asked.split(",") if name)
    devices = (path.name[6:] for path in Path("/dev").glob("nvidia[0-9]*"))
    return tuple(sorted((name for name in devices if name.isdigit()), key=int))


def check_gpus(config_file: Path, ranks: int) -> None:
    """Refuse more ranks on this node than it has GPUs; no GPU at all is `check_precision`'s.

    Raises:
        UserError: there are too few.
    """
    gpus = visible_gpus()
    if gpus and ranks > len(gpus):
        raise UserError(
            f"{config_file.stem} starts {ranks} ranks on a node, and {len(gpus)} GPUs are visible "
            f"here ({', '.join(gpus)}): choose another --launcher, or copy {config_file} with "
            f"num_processes: {len(gpus)}"
        )


def check_precision(file: Path, settings: Mapping[str, Any], gpus: bool) -> None:
    """Refuse a bf16 config without a GPU: going on would train on the CPU without being asked.

    Raises:
        UserError: there is no GPU, and $DS_ACCELERATOR does not ask for the CPU.
    """
    wants_gpu = settings.get("bf16", {}).get("enabled", False)
    if wants_gpu and not gpus and os.environ.get("DS_ACCELERATOR") != "cpu":
        raise UserError(
            f"{file} asks for bf16 on CUDA, and no GPU is visible here: use "
            "accelerate_configs/cpu2.yaml, see 'mvl doctor' on the GPU node, or set "
            "DS_ACCELERATOR=cpu to run bf16 on the CPU"
        )


def deepspeed_config(config_file: Path) -> Path:
    """Absolute path of the DeepSpeed config that an accelerate config names.

    The files name it relative to the project, whatever folder the user stands in.

    Raises:
        UserError: the config names none, or one that does not exist.
    """
    try:
        settings = yaml.safe_load(config_file.read_text())
        name = settings["deepspeed_config"]["deepspeed_config_file"]
    except (KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(
            f"{config_file}: names no deepspeed_config.deepspeed_config_file; start from "
            f"{CONFIGS / 'cpu2.yaml'}"
        ) from error
    for path in (Path(name), ROOT / name):
        if path.is_file():
            return path.resolve()
    raise UserError(f"{config_file}: its DeepSpeed config {name} does not exist")


def deepspeed_settings(file: Path) -> dict[str, Any]:
    """A DeepSpeed config's contents.

    Raises:
        UserError: it cannot be read, names no ZeRO stage, or holds what this project cannot run.
    """
    try:
        settings = json.loads(file.read_text())
        stage = settings["zero_optimization"]["stage"]
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(
            f"DeepSpeed config {file} cannot be read ({error}): run from the project's folder, or "
            "pass --deepspeed_config_file to accelerate launch"
        ) from error
    except (KeyError, TypeError) as error:
        raise UserError(
            f"DeepSpeed config {file} names no zero_optimization.stage{_near(settings)}: "
            "without it DeepSpeed partitions nothing; start from deepspeed_configs/zero2.json"
        ) from error
    if stage not in STAGES:
        raise UserError(f"DeepSpeed config {file}: zero_optimization.stage {stage!r} is not 0 to 3")
    for key in ("bf16", "fp16"):
        if not isinstance(settings.get(key, {}), dict):
            raise UserError(
                f'DeepSpeed config {file}: {key} takes {{"enabled": true}}, not {settings[key]!r}'
            )
    if settings.get("fp16", {}).get("enabled", False):
        raise UserError(
            f"DeepSpeed config {file} asks for fp16, whose loss scaling this project does not "
            "follow: use bf16"
        )
    if settings.get("gradient_accumulation_steps", 1) not in (1, "auto"):
        raise UserError(
            f"DeepSpeed config {file}: gradient_accumulation_steps is "
            f"{settings['gradient_accumulation_steps']}; a step here is one global batch: set it "
            "to 1, and the batch by --batch-size"
        )
    return dict(settings)


def _near(settings: Any) -> str:
    """What of a config may have been meant for a key that is watched."""
    for key in settings if isinstance(settings, dict) else ():
        if key not in WATCHED_KEYS and difflib.get_close_matches(key, WATCHED_KEYS, n=1):
            return f" (it has '{key}')"
    return ""


def ranks_a_node(config_file: Path) -> int:
    """Ranks that an accelerate config starts on each node.

    Raises:
        UserError: the file is no accelerate config, or names no number of processes.
    """
    return _number(config_file, "num_processes") // machines(config_file)


def machines(config_file: Path) -> int:
    """Nodes that an accelerate config is for.

    Raises:
        UserError: as `ranks_a_node`.
    """
    return _number(config_file, "num_machines", 1)


def _number(config_file: Path, key: str, default: int | None = None) -> int:
    try:
        value = yaml.safe_load(config_file.read_text()).get(key, default)
    except (OSError, AttributeError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"{config_file}: not an accelerate config; start from {CONFIGS / 'cpu2.yaml'}"
        ) from error
    if type(value) is not int or value < 1:
        raise UserError(f"{config_file}: {key} must be a number above 0, not {value!r}")
    return value
