"""Batches on the device ahead of need: the next one travels while a step computes."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from mvl_dist.data import Batch


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches, their tensors on a GPU; on a CPU they pass through.

    They are copied on a stream beside that of the step, one ahead of the one in use.

    Raises:
        Exception: whatever the loader raises.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)

    def copied(batch: Batch) -> Batch:
        with torch.cuda.stream(stream):
            moved = {
                name: value.to(device, non_blocking=True) if torch.is_tensor(value) else value
                for name, value in batch.items()
            }
        stream.synchronize()
        return moved

    for batch in ahead(batches, copied):
        for value in batch.values():
            if torch.is_tensor(value):
                # Or its memory could be given to the next copy while the step still reads it.
                value.record_stream(torch.cuda.current_stream(device))
        yield batch


def ahead(batches: Iterable[Batch], bring: Callable[[Batch], Batch]) -> Iterator[Batch]:
    """What `bring` makes of each batch, in order, by a thread that is one batch ahead.

    The thread asks for the next batch only after `bring` has returned: until then a batch of the
    loader is valid.

    Raises:
        Exception: whatever the batches or `bring` raise.
    """
    brought: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=1)
    ended = threading.Event()

    def put(kind: str, value: Any) -> None:
        while not ended.is_set():
            with contextlib.suppress(queue.Full):
                brought.put((kind, value), timeout=0.1)
                return

    def work() -> None:
        try:
            for batch in batches:
                put("batch", bring(batch))
                if ended.is_set():
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = brought.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        ended.set()
        thread.join()
