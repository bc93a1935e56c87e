"""A server that speaks as much of S3 as a reader needs, and can answer as no sound service does."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import parse_qs, quote, unquote, urlsplit

_LISTING = (
    '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>false</IsTruncated>'
    "<EncodingType>url</EncodingType>{}</ListBucketResult>"
)


class Request(http.server.BaseHTTPRequestHandler):
    """One request. `key` is the object's, empty for a listing; `answer` sends what a fault wants."""

    protocol_version = "HTTP/1.1"
    server: OddS3
    key = ""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass

    def answer(self, status: int, body: bytes = b"", *, length: int | None = None) -> None:
        """Send `body`, and close the line when `length` promised more."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(OSError):
                self.wfile.write(body)
        self.close_connection = length is not None

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.key = "/".join(unquote(url.path).split("/")[2:])
        objects = self.server.objects
        if self.server.fault(self):
            return
        if not self.key:
            prefix = parse_qs(url.query).get("prefix", [""])[0]
            rows = (
                f"<Contents><Key>{quote(key)}</Key><Size>{len(objects[key])}</Size></Contents>"
                for key in sorted(objects)
                if key.startswith(prefix)
            )
            self.answer(200, _LISTING.format("".join(rows)).encode())
        elif self.key not in objects:
            self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        elif wanted := self.headers.get("Range"):
            first, last = wanted.removeprefix("bytes=").split("-")
            self.answer(206, objects[self.key][int(first) : int(last) + 1 if last else None])
        else:
            self.answer(200, objects[self.key])

    do_HEAD = do_GET  # noqa: N815 - the base class's name


class OddS3(http.server.ThreadingHTTPServer):
    """`objects` by key without the bucket; `fault` gets each request first, True when it has answered."""

    daemon_threads = True

    def __init__(self, objects: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.objects = dict(objects)
        self.fault: Callable[[Request], bool] = lambda _: False
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@contextlib.contextmanager
def odd_s3(objects: Mapping[str, bytes]) -> Iterator[OddS3]:
    with OddS3(objects) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
