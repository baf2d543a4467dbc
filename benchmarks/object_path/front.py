"""nginx before moto: what moto has answered once, nginx answers from then on.

moto, in Python, takes as much of the cores as a loader's decoding does, so that a loader beside it
on one machine is measured against the server. nginx hands out the very same answers by sendfile.
Both wait in vain at no cost for as long as they are told before they answer.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.debian import require
from tests.object_server import ObjectServer
from tests.servers import free_port, wait_for_port

PACKAGES = ("nginx-light", "libnginx-mod-http-echo")
COUNT = "/-/status"
CONFIG = """
load_module /usr/share/nginx/modules/ngx_http_echo_module.so;
{user}
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log warn;
events {{ worker_connections 512; }}
http {{
  access_log off; sendfile on; tcp_nopush on; tcp_nodelay on; keepalive_requests 1000000;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  proxy_cache_path {folder}/cache keys_zone=objects:10m max_size=20g inactive=1d;
  server {{
    listen 127.0.0.1:{port};
    location {count} {{ stub_status; }}
    location / {{ echo_sleep {latency_s}; echo_exec @origin; }}
    location @origin {{
      proxy_pass {origin}; proxy_set_header Host $http_host;
      proxy_cache objects; proxy_cache_key $request_uri; proxy_cache_valid 200 1d;
      proxy_ignore_headers Cache-Control Expires Set-Cookie Vary;
    }}
  }}
}}
"""


@dataclass
class Server:
    """What a loader is measured against.

    Attributes:
        name: for the table.
        address: of its S3.
        pid: its first process.
        direct: moto, which holds the objects.
    """

    name: str
    address: str
    pid: int
    direct: ObjectServer
    asked: int = 0

    @property
    def environment(self) -> dict[str, str]:
        """What a user sets to reach it."""
        return {**self.direct.environment, "AWS_ENDPOINT_URL": self.address}

    def processes(self) -> list[psutil.Process]:
        """The server and its workers."""
        first = psutil.Process(self.pid)
        return [first, *first.children(recursive=True)]

    def cpu_s(self) -> float:
        """Processor time of all of them so far."""
        times = [process.cpu_times() for process in self.processes()]
        return sum(each.user + each.system for each in times)

    def requests(self) -> int:
        """Requests since the last call."""
        if self.address == self.direct.address:
            return len(self.direct.taken()[0])
        with urllib.request.urlopen(self.address + COUNT) as answer:
            found = re.search(rb"\n (\d+) (\d+) (\d+)", answer.read())
        assert found
        before, self.asked = self.asked, int(found[3])
        return self.asked - before - 1  # this call's own


@contextlib.contextmanager
def behind_nginx(direct: ObjectServer, latency_s: float, folder: Path) -> Iterator[Server]:
    """Serve what another server holds, for the duration of a `with` block.

    Raises:
        NotInstalledError: nginx is missing and cannot be installed here.
    """
    require(["nginx"], PACKAGES)
    port = free_port()
    folder.mkdir()
    text = CONFIG.format(
        user="user root;" if os.geteuid() == 0 else "",
        folder=folder,
        port=port,
        origin=direct.address,
        latency_s=latency_s,
        count=COUNT,
    )
    (folder / "nginx.conf").write_text(text)
    process = subprocess.Popen(
        ["nginx", "-c", str(folder / "nginx.conf")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_port(port)
        yield Server("nginx before moto", f"http://127.0.0.1:{port}", process.pid, direct)
    finally:
        process.terminate()
        process.wait()
