"""Preset, then a YAML file, then single flags."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tyro
import yaml

from mvl_dist.config.plain import from_plain
from mvl_dist.config.presets import PRESETS
from mvl_dist.config.schema import RunConfig, check
from mvl_dist.errors import UserError


def load_yaml(path: Path, base: RunConfig) -> RunConfig:
    """Lay a YAML file over a config.

    Raises:
        UserError: the file is missing, not YAML, or has a key that no config has.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from error
    return from_plain(values or {}, base, str(path))


def parse(argv: Sequence[str], prog: str = "mvl train") -> RunConfig:
    """Read a run from the command line: preset, then `--config FILE`, then single flags.

    Raises:
        UserError: unknown preset, bad file, or values that no run can have.
        SystemExit: `--help`, or a flag that does not exist (tyro prints which).
    """

    # The base decides the other flags' defaults, so it is read before them.
    rest = list(argv)
    chosen: dict[str, str] = {}
    for flag in ("--preset", "--config"):
        for index, argument in enumerate(rest):
            name, equals, value = argument.partition("=")
            if name != flag:
                continue
            if not equals and index + 1 >= len(rest):
                raise UserError(f"{flag} needs a value")
            chosen[flag] = value if equals else rest[index + 1]
            del rest[index : index + (1 if equals else 2)]
            break
    preset = chosen.get("--preset", "paper")
    if preset not in PRESETS:
        raise UserError(f"--preset {preset}: known presets are {', '.join(PRESETS)}")
    base = PRESETS[preset]()
    if "--config" in chosen:
        base = load_yaml(Path(chosen["--config"]), base)
    config = tyro.cli(
        RunConfig,
        args=rest,
        default=base,
        prog=prog,
        description=f"Train one run. --preset {'|'.join(PRESETS)} and --config FILE.yaml set what "
        f"the flags below change (shown: preset {preset}).",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff),
    )
    check(config)
    return config
