"""A store's folders and small files, wherever it lies."""

from __future__ import annotations

from mvl_dist.place import RemotePlace, StorePlace
from mvl_dist.store import objects
from mvl_dist.store.format import MANIFEST


def names_in(place: StorePlace) -> list[str]:
    """Names of what lies directly in a folder, sorted; none if there is no such folder.

    Raises:
        UserError: a web server, which does not tell; an object store that does not answer.
    """
    if isinstance(place, RemotePlace):
        return objects.names_in(place)
    return sorted(path.name for path in place.iterdir()) if place.is_dir() else []


def read_bytes(place: StorePlace) -> bytes:
    """Content of a file.

    Raises:
        OSError: there is none, or it cannot be read.
        UserError: an object store that does not answer, or refuses.
    """
    return objects.fetch(place) if isinstance(place, RemotePlace) else place.read_bytes()


def task_names(store: StorePlace) -> tuple[str, ...]:
    """Names of the tasks whose conversion was completed.

    Raises:
        UserError: as `names_in`.
    """
    if isinstance(store, RemotePlace):
        return tuple(n for n in objects.names_in(store) if MANIFEST in objects.names_in(store / n))
    return tuple(sorted(path.parent.name for path in store.glob(f"*/{MANIFEST}")))


def unpublished_names(store: StorePlace) -> tuple[str, ...]:
    """Names of the tasks whose conversion was begun and not completed.

    Raises:
        UserError: as `names_in`.
    """
    inside = {name: names_in(store / name) for name in names_in(store)}
    return tuple(n for n, names in inside.items() if "cases" in names and MANIFEST not in names)
