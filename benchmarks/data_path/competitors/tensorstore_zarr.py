"""TensorStore, on our own Zarr store."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import tensorstore

from benchmarks.data_path.competitors.ours import OursUncached
from benchmarks.data_path.contract import Box, Competitor
from benchmarks.data_path.source import TASK, Arrays


class TensorStore(Competitor):
    """Its own threads, one a core; arrays stay open in each process."""

    name = "TensorStore"
    says = "our Zarr store read by TensorStore, arrays kept open, all cores for every read"

    def files(self) -> list[Path]:
        """Ours."""
        return OursUncached(self.source, self.folder).files()

    def read(self, case: str) -> Arrays:
        """Both arrays at once."""
        pending = [self._open(case, array).read() for array in ("image", "label")]
        return pending[0].result(), pending[1].result()

    def box(self, case: str, box: Box) -> Arrays:
        """Both boxes at once."""
        image, label = (self._open(case, a) for a in ("image_spaced", "label_spaced"))
        pending = image[(slice(None), *box)].read(), label[box].read()
        return pending[0].result(), pending[1].result()

    def _open(self, case: str, array: str) -> tensorstore.TensorStore:
        return _opened(str(self.source.store / TASK / "cases" / case / array))


@cache
def _opened(path: str) -> tensorstore.TensorStore:
    kvstore = {"driver": "file", "path": path}
    return tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result()
