"""A registry that sent a byte before each read's time ran out was waited for without end."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.oci.digest import Digest
from pipeline.oci.manifest import OCI_LAYER, Descriptor
from pipeline.registry import pace
from pipeline.registry.client import RegistryClient
from pipeline.registry.errors import Unreachable
from pipeline.registry.referrers import referrers
from pipeline.registry.session import RetryPolicy

DATA = b"a layer" * 300_000
BLOB = Descriptor(media_type=OCI_LAYER, digest=Digest.of(DATA), size=len(DATA))
ATTEMPTS = 3


class Line(httpx.BaseTransport):
    """Answers with `DATA` from where it is asked, in pieces that each take ``seconds`` of a made-up clock."""

    def __init__(self, piece: int, seconds: float) -> None:
        self.now, self.requests = 0.0, 0
        self._piece, self._seconds = piece, seconds

    def client(self) -> RegistryClient:
        patience = RetryPolicy(attempts=ATTEMPTS, sleep=lambda _: None, clock=lambda: self.now)
        return RegistryClient("h.example", credentials=lambda _: None, patience=patience, transport=self)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        start = int(request.headers.get("Range", "bytes=0-")[6:-1])
        headers = {"Content-Range": f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"} if start else {}
        return httpx.Response(206 if start else 200, headers=headers, stream=_Pieces(self._pieces(start)))

    def _pieces(self, start: int) -> Iterator[bytes]:
        for position in range(start, len(DATA), self._piece):
            self.now += self._seconds
            yield DATA[position : position + self._piece]


class _Pieces(httpx.SyncByteStream):
    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces


ASKED: dict[str, Callable[[RegistryClient, Path], Any]] = {
    "blob": lambda client, _: client.read_blob("a/b", BLOB),
    "blob into a file": lambda client, folder: client.fetch_blob("a/b", BLOB, folder / "blob"),
    "manifest": lambda client, _: client.get_manifest("a/b", "v1"),
    "tags": lambda client, _: client.tags("a/b"),
    "referrers": lambda client, _: referrers(client, "a/b", BLOB.digest),
}


@pytest.mark.parametrize("kind", ASKED)
def test_it_is_given_up_after_the_usual_attempts(kind: str, tmp_path: Path) -> None:
    line = Line(piece=1, seconds=59)
    with (
        line.client() as client,
        pytest.raises(Unreachable, match="sends less than 1 KiB a second") as reported,
    ):
        ASKED[kind](client, tmp_path)
    assert "a/b" in reported.value.message
    assert line.requests == ATTEMPTS
    assert not (tmp_path / "blob").exists()


def test_an_error_that_drips_is_reported_by_its_status() -> None:
    now = itertools.count(step=59)
    patience = RetryPolicy(attempts=1, sleep=lambda _: None, clock=lambda: float(next(now)))

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(403, stream=_Pieces(itertools.repeat(b"x", 1000)))

    with (
        RegistryClient(
            "h.example",
            credentials=lambda _: None,
            patience=patience,
            transport=httpx.MockTransport(answer),
        ) as client,
        pytest.raises(Exception, match="denies"),
    ):
        client.tags("a/b")


@pytest.mark.parametrize(("piece", "seconds"), [(2100, 1), (100_000, 55)], ids=["slow", "in bursts"])
def test_a_line_that_is_slow_and_lives_is_not_cut(piece: int, seconds: float) -> None:
    line = Line(piece, seconds)
    with line.client() as client:
        assert client.read_blob("a/b", BLOB) == DATA
    assert line.requests == 1


def test_one_who_takes_the_bytes_slowly_is_waited_for() -> None:
    line = Line(piece=10, seconds=0)
    with line.client() as client, client.open_blob("a/b", BLOB) as blob:
        while blob.read(100_000):
            line.now += 3600
    assert line.requests == 1


def test_over_a_real_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """httpx hands a byte over as it comes, and does not wait for more."""
    monkeypatch.setattr(pace, "WINDOW", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                    try:
                        while True:
                            connection.sendall(b"x")
                            time.sleep(0.02)
                    except OSError:
                        pass

        dripper = threading.Thread(target=drip, daemon=True)
        dripper.start()
        host = f"127.0.0.1:{server.getsockname()[1]}"
        patience = RetryPolicy(attempts=2, first=0.01)
        with (
            RegistryClient(host, credentials=lambda _: None, patience=patience) as client,
            pytest.raises(Unreachable, match="sends less than"),
        ):
            client.tags("a/b")
        dripper.join(10)
    assert not dripper.is_alive()
