"""Files of a store under s3://, gs:// or http(s)://: fetched, fetched ahead of need, listed.

obstore does the transport: it signs, pools connections, and repeats what failed for a passing
reason.

State is one process's own (connections, files under way) and is made at its first request, so
that worker processes, which are spawned, begin with none.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from mvl_dist.errors import UserError
from mvl_dist.place import RemotePlace
from mvl_dist.store.connection import FIRST_RETRIES, LATER_RETRIES, connect, explained

# Requests of a process that are under way at the same time; a case is two.
AT_ONCE = 32
# Files kept that nobody has come for, beside as many as one call of `begin` ever named: an epoch
# that was broken off leaves some.
KEPT = 32


def fetch(place: RemotePlace, retries: int = LATER_RETRIES) -> bytes:
    """Content of a file.

    Raises:
        FileNotFoundError: there is none, in a bucket that exists.
        UserError: no answer, no permission, no such bucket.
    """
    try:
        connection = connect(place.root, retries)
        import obstore

        return bytes(obstore.get(connection, place.key).bytes())
    except Exception as error:
        raise explained(error, place) from error


def fetch_tail(place: RemotePlace, size: int) -> bytes:
    """The last bytes of a file.

    Raises:
        FileNotFoundError, UserError: as `fetch`.
    """
    try:
        connection = connect(place.root)
        import obstore

        answer = obstore.get(connection, place.key, options={"range": {"suffix": size}})
        return bytes(answer.bytes())
    except Exception as error:
        raise explained(error, place) from error


def fetch_ranges(place: RemotePlace, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Parts of a file, each (offset, size): neighbours in one request, all requests at once.

    Raises:
        FileNotFoundError, UserError: as `fetch`.
    """
    try:
        connection = connect(place.root)
        import obstore

        starts, lengths = zip(*ranges, strict=True)
        parts = obstore.get_ranges(connection, place.key, starts=starts, lengths=lengths)
        return [bytes(part) for part in parts]
    except Exception as error:
        raise explained(error, place) from error


def fetch_first(place: RemotePlace) -> bytes:
    """Content of the file that every command reads first: a manifest.

    Raises:
        FileNotFoundError, UserError: as `fetch`; a server that has never answered is given up
            within seconds where its network refuses.
    """
    retries = LATER_RETRIES if place.root in _REACHED else FIRST_RETRIES
    content = fetch(place, retries)
    _REACHED.add(place.root)
    return content


def names_in(place: RemotePlace) -> list[str]:
    """Names of what lies directly in a folder, sorted; none if there is no such folder.

    Raises:
        UserError: as `fetch`; or a web server, which does not tell.
    """
    if place.scheme in ("http", "https"):
        raise UserError(
            f"{place}: a web server does not list its folders: name the task in full, e.g. --task "
            "Task04_Hippocampus (verify: --tasks)"
        )
    try:
        connection = connect(place.root, FIRST_RETRIES)
        import obstore

        found = obstore.list_with_delimiter(connection, place.key or None)
    except Exception as error:
        raise explained(error, place) from error
    paths = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
    return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)


def begin(places: Sequence[RemotePlace]) -> None:
    """Fetch files in the background for the reads that follow; returns at once.

    A failure is kept, and met by the read.
    """
    AHEAD.begin(places)


def taken(place: RemotePlace) -> Any:
    """Content of a file that `begin` was told of, or that is fetched now.

    Returns:
        Something that `bytes` and numpy's `frombuffer` take; a copy of an image's chunk would take
        a tenth of what its arrival does.

    Raises:
        FileNotFoundError, UserError: as `fetch`.
    """
    ahead = AHEAD.take(place)
    return fetch(place) if ahead is None else ahead.result()


class _Ahead:
    """Files under way: asked for before their reader comes, each handed out once."""

    def __init__(self) -> None:
        self.files: OrderedDict[str, Future[Any]] = OrderedDict()
        self.most = 0
        self.lock = threading.Lock()
        self.room = asyncio.Semaphore(AT_ONCE)
        self.loop: asyncio.AbstractEventLoop | None = None

    def begin(self, places: Sequence[RemotePlace]) -> None:
        with self.lock:
            for place in places:
                self._begin(place)
            self.most = max(self.most, len(places))
            while len(self.files) > KEPT + self.most:
                self.files.popitem(last=False)[1].cancel()

    def _begin(self, place: RemotePlace) -> None:
        if str(place) in self.files:
            self.files.move_to_end(str(place))
            return
        if self.loop is None:
            self.loop = asyncio.new_event_loop()
            # A daemon: a process that ends does not wait for a server that is away.
            run = self.loop.run_forever
            threading.Thread(target=run, name="mvl-fetch", daemon=True).start()
        self.files[str(place)] = asyncio.run_coroutine_threadsafe(self._fetch(place), self.loop)

    async def _fetch(self, place: RemotePlace) -> Any:
        try:
            connection = connect(place.root)
            import obstore

            async with self.room:
                answer = await obstore.get_async(connection, place.key)
                return await answer.bytes_async()
        except Exception as error:
            raise explained(error, place) from error

    def take(self, place: RemotePlace) -> Future[Any] | None:
        with self.lock:
            return self.files.pop(str(place), None)


AHEAD = _Ahead()
_REACHED: set[str] = set()
