"""Registries for tests: one with Bearer tokens in nvcr.io's shape, and a proxy that fails on request."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import http.client
import json
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509.oid import NameOID

from demo.registry import PrivateRegistry

_PIECE = 64 << 10
_ISSUER = "tests"
_SERVICE = "registry"


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler], bind: tuple[str, int] = ("127.0.0.1", 0)) -> Iterator[str]:
    """An HTTP server on a free port of loopback, or where ``bind`` says; gives ``ADDRESS:PORT``."""
    server = ThreadingHTTPServer(bind, handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"{bind[0]}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Quiet(BaseHTTPRequestHandler):
    """HTTP/1.1 without a line on stderr for each request."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that it overrides
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def error_body(code: str, message: str) -> bytes:
    """A registry's error as JSON."""
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()


# --- Bearer tokens


class _Signer:
    """A key, its self-signed certificate, and tokens of docker's shape (JWT, ES256, x5c)."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
        now = dt.datetime.now(dt.timezone.utc)
        self._certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def token(self, subject: str, access: list[dict[str, object]], seconds: float) -> str:
        der = self._certificate.public_bytes(serialization.Encoding.DER)
        header = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(der).decode()]}
        now = int(time.time())
        claims = {"iss": _ISSUER, "sub": subject, "aud": _SERVICE, "iat": now, "nbf": now - 60}
        claims |= {"exp": int(now + seconds), "jti": secrets.token_hex(8), "access": access}
        signed = f"{_base64url(json.dumps(header).encode())}.{_base64url(json.dumps(claims).encode())}"
        r, s = utils.decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class TokenRegistry:
    """docker-registry behind a token server that sells tokens for ``username`` and ``password``.

    ``seconds`` is a token's life. ``sold`` lists the scopes of each token that was given out. A context
    manager.
    """

    def __init__(
        self, *, username: str = "$oauthtoken", password: str = "nvapi-made-up", seconds: float = 300
    ):
        self.username = username
        self.password = password
        self.seconds = seconds
        self.sold: list[list[str]] = []
        self.address = ""
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> TokenRegistry:  # noqa: PYI034 - Self is not in Python 3.10
        signer = _Signer()
        realm = self._stack.enter_context(serving(self._handler(signer)))
        registry = PrivateRegistry(auth="")
        folder = Path(self._stack.enter_context(_temporary_folder()))
        (folder / "root.pem").write_bytes(signer.pem)
        registry = PrivateRegistry(
            auth="auth:\n  token:\n"
            f"    realm: http://{realm}/token\n    service: {_SERVICE}\n    issuer: {_ISSUER}\n"
            f"    rootcertbundle: {folder / 'root.pem'}\n"
        )
        self._stack.callback(registry.stop)
        self.address = registry.start(folder / "registry")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _handler(self, signer: _Signer) -> type[Quiet]:
        shop = self

        class TokenServer(Quiet):
            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                expected = base64.b64encode(f"{shop.username}:{shop.password}".encode()).decode()
                if self.headers.get("Authorization") != f"Basic {expected}":
                    self.answer(401, error_body("UNAUTHORIZED", "incorrect username or password"))
                    return
                scopes = query.get("scope", [])
                shop.sold.append(scopes)
                access: list[dict[str, object]] = []
                for scope in scopes:
                    kind, name, actions = scope.split(":")
                    access.append({"type": kind, "name": name, "actions": actions.split(",")})
                token = signer.token(shop.username, access, shop.seconds)
                body = json.dumps({"token": token, "expires_in": shop.seconds}).encode()
                self.answer(200, body, Content_Type="application/json")

        return TokenServer


@contextlib.contextmanager
def _temporary_folder() -> Iterator[str]:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="sqshpipe-token-", dir="/var/tmp") as folder:
        yield folder


# --- faults


@dataclass(slots=True, kw_only=True)
class Fault:
    """What the proxy does to the next ``times`` requests that match ``method`` and ``path`` (a regular
    expression).

    ``status`` answers at once; ``cut_response`` and ``cut_request`` drop the line after as many bytes of
    body;
    ``delay`` waits (seconds); ``change`` rewrites the answer's body and keeps its length; ``headers`` are
    put over the answer's.
    """

    method: str = ""
    path: str = ""
    times: int = 1
    status: int = 0
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut_response: int | None = None
    cut_request: int | None = None
    delay: float = 0.0
    change: Callable[[bytes], bytes] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A request that reached the proxy."""

    method: str
    path: str
    headers: dict[str, str]


class FaultyProxy:
    """Stands before a registry, passes everything on, and fails as its ``faults`` say. A context manager."""

    def __init__(self, upstream: str, bind: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self.upstream = upstream
        self._bind = bind
        self.address = ""
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self._lock = threading.Lock()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> FaultyProxy:  # noqa: PYI034 - Self is not in Python 3.10
        proxy = self

        class Handler(_Forwarder):
            owner = proxy

        self.address = self._stack.enter_context(serving(Handler, self._bind))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def count(self, method: str, path: str) -> int:
        """How many requests matched."""
        return sum(1 for seen in self.seen if seen.method == method and re.search(path, seen.path))

    def take(self, method: str, path: str, headers: dict[str, str]) -> Fault | None:
        """Note a request and say what shall happen to it."""
        with self._lock:
            self.seen.append(Seen(method=method, path=path, headers=headers))
            for fault in self.faults:
                if fault.times and fault.method in ("", method) and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None


class _Forwarder(Quiet):
    owner: FaultyProxy

    def do_GET(self) -> None:
        self._forward()

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - names that http.server asks for

    def _forward(self) -> None:
        fault = self.owner.take(self.command, self.path, dict(self.headers.items())) or Fault()
        time.sleep(fault.delay)
        length = int(self.headers.get("Content-Length") or 0)
        if fault.status:
            self._drain(length)
            self.answer(
                fault.status, fault.body, **{k.replace("-", "_"): v for k, v in fault.headers.items()}
            )
            return
        upstream = http.client.HTTPConnection(self.owner.upstream, timeout=60)
        try:
            if self._send(upstream, length, fault):
                self._return(upstream.getresponse(), fault)
        except (OSError, http.client.HTTPException):
            self._drop()
        finally:
            upstream.close()

    def _send(self, upstream: http.client.HTTPConnection, length: int, fault: Fault) -> bool:
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            upstream.putheader(name, value)
        upstream.endheaders()
        until_cut = fault.cut_request
        chunked = self._is_chunked()
        for piece in self._body(length):
            if until_cut is not None and until_cut < len(piece):
                upstream.send(piece[:until_cut])
                time.sleep(0.05)  # lets the registry take in what it got
                self._drop()
                return False
            if until_cut is not None:
                until_cut -= len(piece)
            upstream.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        if chunked:
            upstream.send(b"0\r\n\r\n")
        return True

    def _is_chunked(self) -> bool:
        return "chunked" in self.headers.get("Transfer-Encoding", "")

    def _body(self, length: int) -> Iterator[bytes]:
        """The request's body in pieces; an engine sends layers chunked, without a length."""
        if not self._is_chunked():
            while length > 0 and (piece := self.rfile.read(min(length, _PIECE))):
                length -= len(piece)
                yield piece
            if length > 0:
                raise ConnectionError  # the client has gone
            return
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _return(self, response: http.client.HTTPResponse, fault: Fault) -> None:
        self.send_response(response.status)
        headers = {name: value for name, value in response.getheaders() if name.lower() != "date"}
        for name, value in {**headers, **fault.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        left = fault.cut_response
        while self.command != "HEAD" and (piece := response.read(_PIECE)):
            piece = fault.change(piece) if fault.change is not None else piece
            if left is not None and left < len(piece):
                self.wfile.write(piece[:left])
                self._drop()
                return
            if left is not None:
                left -= len(piece)
            self.wfile.write(piece)

    def _drain(self, length: int) -> None:
        for _ in self._body(length):
            pass

    def _drop(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
