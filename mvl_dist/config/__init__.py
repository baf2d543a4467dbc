"""What a run is, as typed data: its settings, presets, command line and identity."""

from mvl_dist.config.command_line import load_yaml, parse
from mvl_dist.config.naming import described, identity, request_key
from mvl_dist.config.place_flags import FolderFlag, StoreFlag
from mvl_dist.config.plain import from_plain, to_plain
from mvl_dist.config.presets import PRESETS, paper, smoke
from mvl_dist.config.schema import (
    DataConfig,
    DonorConfig,
    LoRAConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    Shape3D,
    check,
)

__all__ = [
    "PRESETS",
    "DataConfig",
    "DonorConfig",
    "FolderFlag",
    "LoRAConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "Shape3D",
    "StoreFlag",
    "check",
    "described",
    "from_plain",
    "identity",
    "load_yaml",
    "paper",
    "parse",
    "request_key",
    "smoke",
    "to_plain",
]
