"""A checksum that a JSON file carries of itself, so that a flipped bit anywhere in it is found.

The sha256 stands in the file as the value of `file_sha256` and is that of the file's bytes with
this value empty.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

SEAL = "file_sha256"


def sealed_text(text_with: Callable[[str], str]) -> str:
    """The text of a file with its seal.

    Args:
        text_with: a value of `SEAL` -> the text that holds it; alike but for that value.
    """
    return text_with(hashlib.sha256(text_with("").encode()).hexdigest())


def sealed_json(content: dict[str, Any]) -> str:
    """An object as JSON text that carries its seal."""
    return sealed_text(lambda seal: json.dumps({SEAL: seal, **content}, indent=1))


def seal_holds(data: bytes, seal: object) -> bool:
    """Whether a file's bytes are those that its seal was made of."""
    if not isinstance(seal, str):
        return False
    return seal == hashlib.sha256(data.replace(f'"{seal}"'.encode(), b'""', 1)).hexdigest()
