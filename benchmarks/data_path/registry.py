"""Who is compared: one file each in competitors/, and one line here, in the tables' order.

Only the process that measures imports this: a worker loads what its own competitor needs.
"""

from benchmarks.data_path.competitors.blosc2_store import Blosc2
from benchmarks.data_path.competitors.memmap import Memmap, MemmapTorch
from benchmarks.data_path.competitors.monai_datasets import Cache, Persistent
from benchmarks.data_path.competitors.ours import Ours, OursUncached
from benchmarks.data_path.competitors.paper_way import PaperWay
from benchmarks.data_path.competitors.tar import Tar
from benchmarks.data_path.competitors.tensorstore_zarr import TensorStore
from benchmarks.data_path.contract import Competitor

COMPETITORS: tuple[type[Competitor], ...] = (
    Ours,
    OursUncached,
    Memmap,
    MemmapTorch,
    Persistent,
    Cache,
    Blosc2,
    Tar,
    TensorStore,
    PaperWay,
)
