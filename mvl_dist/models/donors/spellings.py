"""One tensor, several spellings: which name a folder's file uses for it.

A checkpoint saved from the bare model leaves out the first word (`bert.`, `biogpt.`, `model.`),
and BERT checkpoints made from TensorFlow's call a norm's weight and bias gamma and beta. A donor's
tensors go by the full modern name, so that its checksum does not depend on the spelling.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from mvl_dist.models.donors.sources import missing_tensors

OLD = {"weight": "gamma", "bias": "beta"}


def find_names(names: Iterable[str], held: Collection[str], path: Path) -> dict[str, str]:
    """Full modern name -> the name under which `held` has it.

    Raises:
        UserError: `path` holds a tensor under no spelling.
    """
    found = {}
    for name in names:
        bare = name.partition(".")[2]
        for spelling in (name, bare, _old(name), _old(bare)):
            if spelling in held:
                found[name] = spelling
                break
    absent = [name for name in names if name not in found]
    if absent:
        raise missing_tensors(path, absent)
    return found


def _old(name: str) -> str:
    return re.sub(r"(?<=LayerNorm\.)(weight|bias)$", lambda match: OLD[match[0]], name)
