"""The body of a large answer, with little work for each piece of it.

httpx takes a body through its parser of HTTP, 64 KiB at a time, or 16 KiB where TLS is spoken, since a record
of TLS holds no more. That is work under the interpreter's lock, which the threads of a conversion need. A
body whose length is known has nothing to parse: it is read from the connection itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import httpcore
import httpx

_FROM = 4 << 20  # bytes of a body below which a connection that can be used again is worth more
_READ = 1 << 18


def pieces(response: httpx.Response) -> Iterator[bytes]:
    """The body of a streamed ``response``, in pieces as they come. Raises httpx.TransportError.

    The connection cannot be used again after a large one. The caller closes the response.
    """
    parts = response.iter_raw()
    length = response.headers.get("content-length", "")
    stream = response.extensions.get("network_stream")
    one_by_one = response.http_version != "HTTP/1.1" or "transfer-encoding" in response.headers
    if stream is None or one_by_one or not length.isdecimal() or int(length) < _FROM:
        yield from parts
        return
    first = next(parts, b"")  # all that the parser has of it
    yield first
    timeout = response.request.extensions.get("timeout", {}).get("read")
    yield from _rest(stream, int(length) - len(first), timeout)


def _rest(stream: httpcore.NetworkStream, left: int, timeout: float | None) -> Iterator[bytes]:
    while left > 0:
        try:
            piece = stream.read(min(left, _READ), timeout=timeout)
        except httpcore.TimeoutException as error:
            raise httpx.ReadTimeout(str(error)) from error
        except httpcore.NetworkError as error:
            raise httpx.ReadError(str(error)) from error
        if not piece:
            raise httpx.RemoteProtocolError(f"the connection ended {left} bytes before the body's end")
        left -= len(piece)
        yield piece
