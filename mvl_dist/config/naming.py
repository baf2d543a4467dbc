"""Which settings decide a run's result, and the names it has by them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from typing import Any

from mvl_dist.config.plain import to_plain
from mvl_dist.config.schema import CROP_SETTINGS, RunConfig


def identity(
    config: RunConfig,
    reads: Collection[str],
    data_checksum: str,
    donor_checksum: str = "",
    mirror_axes: Sequence[str] = (),
) -> str:
    """Short hash of what decides a run's result: two runs of one identity are the same run.

    Paths, worker counts and what is merely kept or logged do not count, nor do settings that the
    model never reads; the data and the donor count by their content.

    Args:
        reads: fields of ModelConfig that the model uses.
        mirror_axes: the task's; they count where the augmentation mirrors.
    """
    decides = _deciding(config, reads)
    decides["model"].pop("donor", None)
    decides["content"] = {"data": data_checksum, "donor": donor_checksum}
    if config.data.augmentation == "strong":
        decides["content"]["mirror_axes"] = list(mirror_axes)
    return _hash(decides)


def request_key(config: RunConfig, reads: Collection[str]) -> str:
    """Short hash of what was asked for, known before data and donor are read.

    A study finds its runs by it: the donor counts by its name, the data by the task's name.
    """
    return _hash(_deciding(config, reads))


def described(config: RunConfig, reads: Collection[str]) -> dict[str, Any]:
    """Settings worth tracking, nested and plain: all but those that the model never reads."""
    plain = to_plain(config)
    kept = {"name", "activation", *reads}
    plain["model"] = {key: value for key, value in plain["model"].items() if key in kept}
    return plain


def _deciding(config: RunConfig, reads: Collection[str]) -> dict[str, Any]:
    plain = described(config, reads)
    decides = {key: plain[key] for key in ("data", "model", "optim")}
    for place in ("store", "workers", "cache_gb"):
        del decides["data"][place]
    # Newer than the first runs, which keep their names.
    if not config.data.leave_out:
        del decides["data"]["leave_out"]
    if config.data.resolution == "grid":
        for name in ("resolution", *CROP_SETTINGS):
            del decides["data"][name]
    if config.model.frozen_precision == "model":
        decides["model"].pop("frozen_precision", None)
    if config.resume_from:
        decides["resume_from"] = config.resume_from.name
    return decides


def _hash(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]
