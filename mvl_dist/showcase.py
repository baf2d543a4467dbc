"""What a run keeps of its test cases for the report: one file, `showcase.npz`, bounded in size.

    about                     JSON: regions, cases, costs, what was left out
    CASE/predicted, reference masks at the scan's own grid, packed to bits and deflated
    CASE/image                (D, H, W) uint8, first channel at the store's grid
    CASE/plane                (H, W) uint8, its slice with most reference
    calibration/REGION/WHERE  (bins, 3): voxels, sum of probabilities, voxels that are foreground
    activation/STAGE          (h, w) float16, a slice of `mvl_dist.activations`' maps

Masks and planes are there for as many cases as the bound allows, the worst, the best and the median
first; images for these three and for more while there is room.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mvl_dist.errors import UserError
from mvl_dist.files import write_bytes_atomically

FILE = "showcase.npz"
FOLDER = "report"  # of a run's folder and of its MLflow artifacts
LIMIT_BYTES = 8 * 2**20
BINS = 15
# Columns of the paper's Figure 3 after the image X; what each is: `mvl_dist.activations`.
STAGES = ("V_E(X)", "V_D1", "V_D2", "V_D(Q)", "attention", "Y")

Mask = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Packed:
    """Masks (R, D, H, W) as bytes: a deflated string of bits."""

    data: bytes
    shape: tuple[int, ...]

    @classmethod
    def of(cls, masks: Mask) -> Packed:
        """Pack masks; a segmentation shrinks some thousandfold."""
        return cls(zlib.compress(np.packbits(masks).tobytes(), 6), masks.shape)

    def masks(self) -> Mask:
        """The masks (R, D, H, W)."""
        bits = np.frombuffer(zlib.decompress(self.data), np.uint8)
        return np.unpackbits(bits, count=int(np.prod(self.shape))).reshape(self.shape).astype(bool)


def rank_cases(dice: Mapping[str, float]) -> list[str]:
    """Cases from the lowest Dice to the highest; equal ones by name."""
    return sorted(dice, key=lambda case: (dice[case], case))


def chosen_by_rule(dice: Mapping[str, float]) -> dict[str, str]:
    """The best, the median and the worst case by Dice: `best`, `median`, `worst` -> case.

    The median of an even number is the lower of the two in the middle.
    """
    ranked = rank_cases(dice)
    return {"best": ranked[-1], "median": ranked[(len(ranked) - 1) // 2], "worst": ranked[0]}


def by_importance(dice: Mapping[str, float]) -> list[str]:
    """All cases in the order in which room is given: worst, best, median, then from below."""
    rule = chosen_by_rule(dice)
    first = dict.fromkeys((rule["worst"], rule["best"], rule["median"]))
    return [*first, *(case for case in rank_cases(dice) if case not in first)]


def to_uint8(image: Array) -> npt.NDArray[np.uint8]:
    """An image's 0.5 to 99.5 percentiles stretched over 0 to 255."""
    low, high = np.percentile(image.astype(np.float32), (0.5, 99.5))
    scaled = (image.astype(np.float32) - low) / max(float(high - low), 1e-6)
    return (scaled.clip(0, 1) * 255).astype(np.uint8)


class Writer:
    """Collects arrays until the file is full."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self.left = limit_bytes
        self._buffer = io.BytesIO()
        self._zip = zipfile.ZipFile(self._buffer, "w", zipfile.ZIP_DEFLATED)

    def add(self, name: str, array: Array) -> bool:
        """Add an array; False, and nothing is added, if it finds no room."""
        raw = io.BytesIO()
        np.save(raw, array, allow_pickle=False)
        size = len(zlib.compress(raw.getvalue(), 6))
        if size > self.left:
            return False
        self._zip.writestr(f"{name}.npy", raw.getvalue())
        self.left -= size
        return True

    def write(self, path: Path, about: Mapping[str, Any]) -> None:
        """Write the file in one step."""
        self._zip.writestr("about.json", json.dumps(about))
        self._zip.close()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomically(path, self._buffer.getvalue())


class Showcase:
    """A showcase that is read."""

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            UserError: it is no showcase.
        """
        try:
            self._zip = zipfile.ZipFile(path)
            self.about: dict[str, Any] = json.loads(self._zip.read("about.json"))
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: no {FILE} of a run, or a damaged one ({error})") from error
        self._names = set(self._zip.namelist())

    def array(self, *name: str) -> Array | None:
        """An array by the parts of its name; None where it was left out."""
        file = f"{'/'.join(name)}.npy"
        if file not in self._names:
            return None
        array: Array = np.load(io.BytesIO(self._zip.read(file)), allow_pickle=False)
        return array

    def masks(self, case: str, which: str) -> Mask | None:
        """`predicted` or `reference` of a case, (R, D, H, W); None where it was left out."""
        data = self.array(case, which)
        if data is None:
            return None
        shape = (len(self.about["regions"]), *self.about["cases"][case]["native_shape"])
        return Packed(data.tobytes(), shape).masks()

    def with_images(self) -> list[str]:
        """Cases whose image is there, in the order of the file."""
        return [case for case in self.about["cases"] if f"{case}/image.npy" in self._names]


def add_case(
    writer: Writer, case: str, predicted: Packed, reference: Packed, plane: Array | None
) -> bool:
    """Add a case's masks and plane; False where they find no room."""
    arrays = {
        "predicted": np.frombuffer(predicted.data, np.uint8),
        "reference": np.frombuffer(reference.data, np.uint8),
    }
    if plane is not None:
        arrays["plane"] = plane
    return all(writer.add(f"{case}/{name}", array) for name, array in arrays.items())


def mean_dice(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Dice of each case, the mean over its labels; rows as `evaluate_cases` gives them.

    Foreground and unions are made of the labels, and count where there is no label alone.
    """
    rows = list(rows)
    labels = [row for row in rows if row.get("kind", "label") == "label"]
    values: dict[str, list[float]] = {}
    for row in labels or rows:
        values.setdefault(str(row["case"]), []).append(float(row["dice"]))
    return {case: sum(dice) / len(dice) for case, dice in values.items()}


def fullest_slice(reference: Mask) -> int:
    """Index along D of the slice with most reference, the regions together: (R, D, H, W)."""
    return int(reference.any(0).sum((1, 2)).argmax())


def relative_index(index: int, size: int, other: int) -> int:
    """The slice at the same relative depth of another grid."""
    return min(int((index + 0.5) * other / size), other - 1)
