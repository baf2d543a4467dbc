"""Connections to object stores and web servers, and what their failures mean in one line."""

from __future__ import annotations

import functools
import os
import re
from datetime import timedelta
from typing import Any

from mvl_dist.errors import UserError
from mvl_dist.place import RemotePlace

# A person waits for the first answer, and is told of a wrong address within seconds; hours of
# training have come before a later one.
FIRST_RETRIES, LATER_RETRIES = 3, 10
GIVE_UP_AFTER = timedelta(minutes=3)
CONNECT_WITHIN = timedelta(seconds=5)
# Of one request with its content, e.g. 300 MB at 5 MB/s.
ANSWER_WITHIN = timedelta(seconds=60)
# Where a machine in AWS asks for the keys of its role; elsewhere nobody answers.
_METADATA_ADDRESS = "169.254.169.254"
_REFUSED = ("PermissionDeniedError", "UnauthenticatedError")
_MEND = {
    "s3": "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE), AWS_REGION and "
    "AWS_ENDPOINT_URL; a public bucket needs AWS_SKIP_SIGNATURE=true",
    "gs": "check GOOGLE_APPLICATION_CREDENTIALS or run 'gcloud auth application-default login'",
    "http": "the server must hand out these files without a login",
}


@functools.cache
def connect(root: str, retries: int = LATER_RETRIES) -> Any:
    """This process's connection to the server of a `RemotePlace.root`.

    Returns:
        An obstore store, whose paths are `RemotePlace.key`.

    Raises:
        UserError: obstore is not installed; no credentials where some are needed.
    """
    try:
        from obstore.store import GCSStore, HTTPStore, S3Store
    except ImportError as error:
        raise UserError(
            f"{root}: object stores need a package: pip install -c constraints.txt obstore"
        ) from error
    options: dict[str, Any] = {
        "retry_config": {
            "max_retries": retries,
            "retry_timeout": GIVE_UP_AFTER,
        },
        "client_options": {
            # The address, or AWS_ENDPOINT_URL, says whether there is TLS.
            "allow_http": True,
            "connect_timeout": CONNECT_WITHIN,
            "timeout": ANSWER_WITHIN,
        },
    }
    scheme, _, bucket = root.partition("://")
    try:
        if scheme == "s3":
            return S3Store(bucket, credential_provider=_profile(root), **options)
        if scheme == "gs":
            return GCSStore(bucket, **options)
        return HTTPStore.from_url(root, **options)
    except UserError:
        raise
    except Exception as error:
        raise explained(error, RemotePlace(root)) from error


def explained(error: Exception, place: RemotePlace) -> Exception:
    """The exception to raise instead of obstore's; a missing file stays `FileNotFoundError`."""
    if isinstance(error, UserError):
        return error
    said = str(error).partition("\n\nDebug source")[0]
    code = re.search(r"<Code>(\w+)</Code>", said)
    kind = "http" if place.scheme == "https" else place.scheme
    name = type(error).__name__
    if code and code[1] == "NoSuchBucket":
        bucket = place.root.partition("://")[2]
        return UserError(
            f"{place}: there is no bucket '{bucket}' at {_server(kind)}: check the address of the "
            "store and AWS_ENDPOINT_URL"
        )
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"{place} is missing")
    if _METADATA_ADDRESS in said:
        return UserError(f"{place}: no credentials found: {_MEND['s3']}")
    if name == "NotSupportedError" and "ange request" in said:
        return UserError(
            f"{place}: its server does not hand out parts of files, which crops at the task's "
            "spacing are: serve the store with one that does (nginx), or copy it to a folder"
        )
    # Of a listing obstore says no more than the status.
    if name in _REFUSED or re.search(r"\b(401 Unauthorized|403 Forbidden)", said):
        why = code[1] if code else "by the server"
        return UserError(f"{place}: access refused ({why}): {_MEND[kind]}")
    why = " ".join(said.partition("<?xml")[0].split())[:400]
    return UserError(
        f"{place}: cannot be read from {_server(kind)} ({code[1] + '; ' if code else ''}{why}): "
        f"check the network and the address; {_MEND[kind]}"
    )


def _server(kind: str) -> str:
    if kind == "s3":
        return os.environ.get("AWS_ENDPOINT_URL") or "Amazon S3 (AWS_ENDPOINT_URL is not set)"
    return {"gs": "Google Cloud Storage", "http": "its server"}[kind]


def _profile(root: str) -> Any:
    """Keys of `aws configure`, single sign-on or a role, where boto3 is installed to read them.

    None where the environment names keys, or wants none: obstore reads those itself.
    """
    if any(os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE")):
        return None
    try:
        import boto3
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return None
    try:
        session = boto3.Session()
        if session.get_credentials() is None:
            raise UserError(f"{root}: no credentials found: {_MEND['s3']}")
        return Boto3CredentialProvider(session)
    except BotoCoreError as error:
        raise UserError(f"{root}: no credentials ({error}): {_MEND['s3']}") from error
