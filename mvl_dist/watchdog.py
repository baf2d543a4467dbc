"""Names the rank that stands still, where a collective would only time out after half an hour."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator

from mvl_dist import distributed
from mvl_dist.errors import UserError

STALL_SECONDS = 600.0


def stall_seconds() -> float:
    """How long no rank may advance: $MVL_STALL_SECONDS, else ten minutes; 0 switches this off."""
    return float(os.environ.get("MVL_STALL_SECONDS", STALL_SECONDS))


class Watchdog:
    """Each rank tells the launch's store how often it has advanced, and watches the others.

    The rank that waits in a collective is not the one at fault: that one has advanced less often.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self.count = 0
        self.doing = "starting"

    def advance(self, doing: str) -> None:
        """Say that this rank goes on to something that the others do too ('step 12')."""
        self.doing = doing
        self.count += 1

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch for the duration of a `with` block; every rank must be in it."""
        limit = stall_seconds()
        if self.world_size == 1 or not limit:
            yield
            return
        ended = threading.Event()
        thread = threading.Thread(target=self._watch, args=(limit, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _watch(self, limit: float, ended: threading.Event) -> None:
        import torch.distributed as dist

        store = dist.PrefixStore("mvl-watchdog", dist.distributed_c10d._get_default_store())
        seen, since = -1, time.monotonic()
        while True:
            if self.count != seen:
                seen, since = self.count, time.monotonic()
                about = [seen, self.doing, socket.gethostname()]
                store.set(str(self.rank), json.dumps(about))
            elif time.monotonic() - since > limit:
                ranks = range(self.world_size)
                told = {r: json.loads(store.get(str(r))) for r in ranks if store.check([str(r)])}
                counts = {rank: told[rank][0] if rank in told else 0 for rank in ranks}
                slowest = min(counts.values())
                if slowest < self.count or len(set(counts.values())) == 1:
                    behind = [rank for rank in ranks if counts[rank] == slowest]
                    distributed.fail(UserError(_message(behind, told, limit, self.world_size)))
            if ended.wait(min(5.0, limit / 4)):
                return


def _message(
    behind: list[int], told: dict[int, tuple[int, str, str]], limit: float, world_size: int
) -> str:
    what = f"nothing has advanced for {limit:.0f} s"
    if len(behind) == world_size:
        return f"{what}: all ranks wait in the same collective, so look at the network"
    names = ", ".join(
        f"rank {rank} on {told[rank][2]} ({told[rank][1]})" if rank in told else f"rank {rank}"
        for rank in behind
    )
    return (
        f"{what}: the others wait for {names}; look at that process and its disk. The same command "
        "goes on from the last checkpoint; $MVL_STALL_SECONDS sets the time"
    )
