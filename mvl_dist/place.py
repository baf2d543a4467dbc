"""Where a store may lie: a folder, or an address in an object store or on a web server."""

from __future__ import annotations

import re
from pathlib import Path

from mvl_dist.errors import UserError

SCHEMES = ("s3", "gs", "http", "https")
_ADDRESS = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*)://(?P<rest>.*)")


class RemotePlace:
    """A folder or file under s3://, gs:// or http(s)://, named as `Path` names local ones.

    pathlib cannot hold it: it makes `s3:/bucket` of `s3://bucket`. Nothing is asked of a server
    here; `mvl_dist.store.objects` does that.

    Attributes:
        root: what one connection serves: scheme and bucket, or scheme, host and port.
        key: the rest, without slashes at its ends; empty for the root itself.
    """

    __slots__ = ("key", "root")

    def __init__(self, root: str, key: str = "") -> None:
        self.root, self.key = root, key.strip("/")

    def __truediv__(self, name: str) -> RemotePlace:
        return RemotePlace(self.root, f"{self.key}/{name}")

    def __str__(self) -> str:
        return f"{self.root}/{self.key}" if self.key else self.root

    def __repr__(self) -> str:
        return f"RemotePlace({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePlace) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def scheme(self) -> str:
        """One of `SCHEMES`."""
        return self.root.partition("://")[0]

    def absolute(self) -> RemotePlace:
        """Itself: an address does not depend on the working directory."""
        return self

    def resolve(self) -> RemotePlace:
        """Itself: there is no link to follow."""
        return self


StorePlace = Path | RemotePlace


def store_place(text: str) -> StorePlace:
    """A place as a person writes it.

    Raises:
        UserError: an address of another kind, or one without a bucket or host.
    """
    address = _ADDRESS.fullmatch(text)
    if address is None:
        return Path(text)
    scheme = address["scheme"].lower()
    root, _, key = address["rest"].partition("/")
    if scheme not in SCHEMES or not root:
        raise UserError(
            f"{text}: a store is a folder, s3://BUCKET/PATH, gs://BUCKET/PATH or "
            "http(s)://HOST/PATH"
        )
    return RemotePlace(f"{scheme}://{root}", key)


def local_folder(text: str) -> Path:
    """A folder to write into.

    Raises:
        UserError: an address; files are written locally alone.
    """
    if _ADDRESS.fullmatch(text):
        raise UserError(
            f"{text}: is written to a local folder only: name one, and upload it when it is whole, "
            f"e.g. with 'aws s3 sync FOLDER {text}' or 'rclone copy'; reading takes the address"
        )
    return Path(text)
