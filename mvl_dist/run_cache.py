"""A run's cache of decoded cases: one a node, chosen alike by all ranks of the node."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from mvl_dist.cache_folder import choose, join
from mvl_dist.case_reader import CaseReader
from mvl_dist.data import ARRAYS_OF, number_of
from mvl_dist.distributed import gather_objects, say
from mvl_dist.node_cache import NodeCache
from mvl_dist.plan import Plan
from mvl_dist.store import Manifest


def array_sizes(
    reader: CaseReader,
    manifest: Manifest,
    cases: Iterable[str],
    channels: str,
    resolution: str = "grid",
) -> list[int]:
    """Bytes of each image and label of some cases that the node's cache would hold, at most.

    Args:
        channels, resolution: as in `DataConfig`.
    """
    image, label = ARRAYS_OF[resolution]
    wanted = ((image, number_of(channels)), (label, None))
    sizes = (reader.kept_bytes(case, array, count) for case in cases for array, count in wanted)
    return [size for size in sizes if size]


def node_cache(plan: Plan) -> NodeCache | None:
    """Join this node's cache, which lasts until the process ends (all ranks); None without one.

    Raises:
        UserError: its folder cannot be made.
    """
    data = plan.config.data
    cases = (*plan.split.train, *plan.split.validation)  # the others are read once
    reader = plan.reader.through(None, plan.manifest)
    sizes = array_sizes(reader, plan.manifest, cases, data.channels, data.resolution)
    own = choose(str(data.store.resolve()), data.cache_gb, sizes)
    # What is free may change between two ranks' looks at it.
    choices = gather_objects([(socket.gethostname(), own)])
    choice = next(choice for host, choice in choices if host == socket.gethostname())
    for note in dict.fromkeys(choice.note for _, choice in choices if choice and choice.note):
        say(f"note: {note}")
    if choice is None:
        return None
    join(choice.folder)
    return NodeCache(choice.folder, choice.capacity)
