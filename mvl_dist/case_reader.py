"""Arrays of a task's cases, for whatever needs them: datasets, evaluation, pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvl_dist.store import read_array, read_box

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True)
class CaseReader:
    """Reads the arrays of a task in a store; small enough to be sent to a worker process."""

    store: Path
    task: str

    def array(self, case: str, array: str) -> npt.NDArray[Any]:
        """One array whole, in C order; the caller must not write into it.

        Raises:
            UserError: as `mvl_dist.store.read_array`.
        """
        return read_array(self.store, self.task, case, array)

    def box(self, case: str, array: str, box: tuple[slice, slice, slice]) -> npt.NDArray[Any]:
        """A part of an array, all its channels: `box` cuts D, H and W.

        Raises:
            UserError: as `mvl_dist.store.read_box`.
        """
        return read_box(self.store, self.task, case, array, box)
