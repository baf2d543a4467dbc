"""Object stores for tests and benchmarks: moto's S3 server, and a folder over HTTP.

    python -m tests.object_server PORT LATENCY_S [FOLDER]

Without a folder it speaks S3 (any credentials will do until `lock` is called), with one it serves
the folder as a plain web server does, without listings. Either waits LATENCY_S before it answers,
many requests at once, and counts what it was asked for.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers import free_port, wait_for_port

KEYS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "secret"}
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Slow:
    """WSGI middleware: every request waits, and is counted; `/-/` paths ask and set."""

    def __init__(self, application: Application, latency_s: float) -> None:
        self.application, self.latency_s = application, latency_s
        self.seen: list[str] = []
        self.now = self.most = self.to_refuse = 0
        self.lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/-/taken":
            with self.lock:
                said, self.seen, self.most = {"seen": self.seen, "most": self.most}, [], 0
            start("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(said).encode()]
        if path.startswith("/-/refuse/"):
            self.to_refuse = int(path.rpartition("/")[2])
            start("200 OK", [("Content-Type", "text/plain")])
            return [b""]
        with self.lock:
            refused = self.to_refuse > 0
            self.to_refuse -= refused
            self.seen.append(f"{environ['REQUEST_METHOD']} {path}")
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            time.sleep(self.latency_s)
            if refused:
                start("503 Slow Down", [("Content-Type", "text/plain"), ("Content-Length", "0")])
                return [b""]
            return self.application(environ, start)
        finally:
            with self.lock:
                self.now -= 1


def folder_application(folder: Path) -> Application:
    """Files of a folder for GET and HEAD; 404 for the rest, 405 for other methods."""
    from werkzeug.utils import send_from_directory
    from werkzeug.wrappers import Request, Response

    @Request.application
    def serve(request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            return Response("method not allowed", 405)
        return send_from_directory(folder, request.path.lstrip("/"), request.environ)

    return serve


@dataclass(frozen=True)
class ObjectServer:
    """A running server.

    Attributes:
        pid: its process.
    """

    port: int
    pid: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a user sets to reach it as S3."""
        return {**KEYS, "AWS_ENDPOINT_URL": self.address, "AWS_REGION": "us-east-1"}

    def taken(self) -> tuple[list[str], int]:
        """Requests since the last call ("GET /bucket/key"), and how many were under way at once."""
        with urllib.request.urlopen(f"{self.address}/-/taken") as answer:
            said = json.load(answer)
        return said["seen"], said["most"]

    def refuse(self, count: int) -> None:
        """Answer the next requests with 503."""
        urllib.request.urlopen(f"{self.address}/-/refuse/{count}").close()

    def upload(self, folder: Path, bucket: str, prefix: str = "", at_once: int = 1) -> None:
        """Make a bucket (if need be) and put every file of a folder into it."""
        client = self._boto("s3")
        client.create_bucket(Bucket=bucket)

        def put(path: Path) -> None:
            name = f"{prefix}{path.relative_to(folder)}"
            client.put_object(Bucket=bucket, Key=name, Body=path.read_bytes())

        with ThreadPoolExecutor(at_once) as threads:
            list(threads.map(put, (path for path in folder.rglob("*") if path.is_file())))

    def put(self, bucket: str, key: str, content: bytes) -> None:
        """Put one object."""
        self._boto("s3").put_object(Bucket=bucket, Key=key, Body=content)

    def delete(self, bucket: str, key: str) -> None:
        """Delete one object."""
        self._boto("s3").delete_object(Bucket=bucket, Key=key)

    def lock(self) -> dict[str, str]:
        """From now on ask for credentials; returns the environment of a user who may read."""
        iam = self._boto("iam")
        iam.create_user(UserName="reader")
        key = iam.create_access_key(UserName="reader")["AccessKey"]
        policy = {
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}],
        }
        iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=json.dumps(policy))
        request = urllib.request.Request(
            f"{self.address}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"}
        )
        urllib.request.urlopen(request).close()
        return {
            **self.environment,
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
        }

    def _boto(self, service: str) -> Any:
        import boto3

        return boto3.client(
            service,
            endpoint_url=self.address,
            region_name="us-east-1",
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )


@contextlib.contextmanager
def object_server(
    latency_s: float = 0.0, folder: Path | None = None, port: int = 0, wait: bool = True
) -> Iterator[ObjectServer]:
    """A server of its own process for the duration of a `with` block: S3, or a folder's files.

    Args:
        port: where it listens; 0 takes a free one.
        wait: until it does.
    """
    port = port or free_port()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.object_server", str(port), str(latency_s)),
            *(() if folder is None else (str(folder),)),
        ],
        cwd=Path(__file__).resolve().parent.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        if wait:
            wait_for_port(port)
        yield ObjectServer(port, process.pid)
    finally:
        process.kill()
        process.wait()


def main(port: str, latency_s: str, folder: str = "") -> None:
    """Serve until killed."""
    from werkzeug.serving import WSGIRequestHandler, make_server

    if folder:
        application = folder_application(Path(folder))
    else:
        from moto.server import DomainDispatcherApplication, create_backend_app

        application = DomainDispatcherApplication(create_backend_app)
    # Connections are kept, as real servers keep them.
    WSGIRequestHandler.protocol_version = "HTTP/1.1"
    server = make_server("127.0.0.1", int(port), Slow(application, float(latency_s)), threaded=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
