"""Files of torch.save, opened as plain tensors only; whatever is wrong with them is one line."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvl_dist.errors import UserError
from mvl_dist.models.donors.sources import missing_tensors

if TYPE_CHECKING:
    import torch

# torch before 1.6 wrote pickles one after the other; the first is this number.
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def check_torch_file(path: Path) -> None:
    """Refuse what is no file of torch.save, as far as its ends tell; needs no torch.

    A zip has its directory at the end, so that a truncated one is found.

    Raises:
        UserError: neither a whole zip nor the beginning of a legacy file.
    """
    try:
        with path.open("rb") as file:
            known = file.read(len(LEGACY)) == LEGACY or _is_zip(path)
    except OSError as error:
        raise UserError(f"donor {path}: cannot be read ({error.strerror})") from error
    if not known:
        raise UserError(
            f"donor {path}: damaged or not a torch zip file (fetch it again, or save it again "
            "with a current torch)"
        )


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # a damaged directory of the large kind
        return False


def open_torch_file(path: Path) -> Mapping[str, Any]:
    """Names and what they stand for; a zip's tensors stay on disk until they are used.

    Raises:
        UserError: damaged, or anything else than plain tensors, of which nothing is executed.
    """
    import torch

    check_torch_file(path)
    try:
        held = torch.load(path, map_location="cpu", mmap=_is_zip(path), weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"donor {path}: refused, it holds more than plain tensors or is damaged (nothing of it "
            "was executed); use a safetensors file, or fetch it again"
        ) from error
    except Exception as error:  # a damaged pickle: any of nine kinds was seen
        raise UserError(
            f"donor {path}: damaged or not a torch zip file "
            f"({' '.join(f'{type(error).__name__}: {error}'.split())[:120]}); fetch it again"
        ) from error
    if not isinstance(held, dict):
        raise UserError(f"donor {path}: holds a {type(held).__name__}, not named tensors")
    return held


def take_tensors(
    path: Path, held: Mapping[str, Any], wanted: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """Copies of an open file's tensors, contiguous and without gradients, by a donor's names.

    Args:
        wanted: name in a donor -> name in the file.

    Raises:
        UserError: a name is not there, or stands for something else.
    """
    import torch

    absent = [inside for inside in wanted.values() if inside not in held]
    if absent:
        raise missing_tensors(path, absent)
    for inside in wanted.values():
        if not isinstance(held[inside], torch.Tensor):
            raise UserError(
                f"donor {path}: {inside} is a {type(held[inside]).__name__}, not a tensor"
            )
    # Checkpoints converted from TensorFlow hold transposed views, others trainable parameters.
    return {
        name: held[inside].detach().clone(memory_format=torch.contiguous_format)
        for name, inside in wanted.items()
    }
