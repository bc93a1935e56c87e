"""Large bodies read from the connection itself: whole, cut, silent, and those that are left to the parser."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest

from pipeline.registry import body

DATA = os.urandom(5 << 20)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(DATA)
Serve = Callable[[socket.socket], None]


@contextlib.contextmanager
def answering(serve: Serve) -> Iterator[str]:
    """The address of a server that reads a request and lets ``serve`` answer, one connection after the
    other."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(1 << 16)
                        serve(connection)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def fetched(address: str, *, timeout: float = 10.0) -> list[bytes]:
    with httpx.Client(timeout=timeout) as client, client.stream("GET", address) as response:
        return list(body.pieces(response))


def chunked(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    connection.sendall(b"%x\r\n%s\r\n0\r\n\r\n" % (len(DATA), DATA))


@pytest.mark.parametrize(
    "serve",
    [
        lambda connection: connection.sendall(HEAD + DATA),
        lambda connection: [connection.sendall(HEAD), connection.sendall(DATA)],
        lambda connection: connection.sendall(HEAD + DATA + b"HTTP/1.1 200 OK\r\n\r\n"),
        lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + DATA),
        chunked,
    ],
    ids=["at once", "head alone first", "more than it said", "until the end", "chunked"],
)
def test_a_body_is_whole(serve: Serve) -> None:
    with answering(serve) as address:
        assert b"".join(fetched(address)) == DATA


@pytest.mark.parametrize("sent", [0, 1, 1 << 20, len(DATA) - 1])
def test_a_body_that_is_cut_short_is_an_error(sent: int) -> None:
    with (
        answering(lambda connection: connection.sendall(HEAD + DATA[:sent])) as address,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        fetched(address)


def test_a_line_that_breaks_is_an_error() -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(HEAD + DATA[: 1 << 20])
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closes by a reset

    with answering(serve) as address, pytest.raises(httpx.TransportError):
        fetched(address)


def test_a_server_that_falls_silent_is_an_error() -> None:
    given_up = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.sendall(HEAD + DATA[: 1 << 20])
        given_up.wait(20)

    with answering(serve) as address:
        with pytest.raises(httpx.ReadTimeout):
            fetched(address, timeout=0.3)
        given_up.set()


def test_the_client_goes_on_with_another_connection() -> None:
    with answering(lambda connection: connection.sendall(HEAD + DATA)) as address, httpx.Client() as client:
        for _ in range(3):
            with client.stream("GET", address) as response:
                assert b"".join(body.pieces(response)) == DATA
