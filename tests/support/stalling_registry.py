"""A registry on loopback that gives manifests and configs at once, and stalls in everything else."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

How = Literal["silent", "mid-body", "wait"]


@contextmanager
def stalling_registry(how: How, *, layers: int = 6) -> Iterator[StallingRegistry]:
    """One that listens until the block ends."""
    server = StallingRegistry(how, layers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop.set()
        server.shutdown()
        server.server_close()
        thread.join(10)


class StallingRegistry(ThreadingHTTPServer):
    """`how` says what happens to layers: no answer, half an answer, or an order to come again in 50 s."""

    daemon_threads = True
    empty = ""  # begins the names of repositories that hold nothing

    def __init__(self, how: How, layers: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.how, self.stop, self.asked = how, threading.Event(), 0
        self.contents: dict[str, bytes] = {}
        tars = [_tar(f"file-{number}", bytes([number]) * 100_000) for number in range(layers)]
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [_digest(tar) for tar in tars]},
        }
        self.held = {self._put(tar) for tar in tars}
        blobs = [
            {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": _digest(tar), "size": len(tar)}
            for tar in tars
        ]
        raw = json.dumps(config).encode()
        described = {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": self._put(raw),
            "size": len(raw),
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": described,
            "layers": blobs,
        }
        self.manifest = json.dumps(manifest).encode()
        self.digest = self._put(self.manifest)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are what is tried here."""

    def _put(self, content: bytes) -> str:
        self.contents[_digest(content)] = content
        return _digest(content)


class _Handler(BaseHTTPRequestHandler):
    server: StallingRegistry
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        kind, _, name = self.path.rpartition("/")
        if self.server.empty and kind.startswith(f"/v2/{self.server.empty}/"):
            self._answer(b"{}", "application/json", status=404)
        elif kind.endswith("/manifests"):
            content = self.server.contents.get(name, self.server.manifest)
            self._answer(content, "application/vnd.oci.image.manifest.v1+json")
        elif name in self.server.held:
            self.server.asked += 1
            self._stall(self.server.contents[name])
        elif name in self.server.contents:
            self._answer(self.server.contents[name], "application/octet-stream")
        else:
            self._answer(b"{}", "application/json")

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

    def do_POST(self) -> None:
        self.server.asked += 1
        self._stall(b"{}" * 1000)

    def _answer(self, content: bytes, kind: str, *, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Docker-Content-Digest", _digest(content))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _stall(self, content: bytes) -> None:
        if self.server.how == "wait":
            self.send_response(503)
            self.send_header("Retry-After", "50")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.server.how == "mid-body":
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
        self.server.stop.wait(90)
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        """Nothing: the test's output is for its failures."""


def until_asked(server: StallingRegistry, *, seconds: float = 60) -> None:
    """Wait until somebody asked for what stalls."""
    end = time.monotonic() + seconds
    while not server.asked:
        if time.monotonic() > end:
            raise TimeoutError("nobody asked the registry")
        time.sleep(0.02)


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _tar(name: str, content: bytes) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return held.getvalue()
