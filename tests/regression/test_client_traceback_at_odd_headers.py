"""Headers and answers of a registry that ended in a traceback, or in all memory: odd digits, long numbers,
invalid addresses, tokens that no header takes, lists nested without end, a token of gigabytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from pipeline.errors import FormatError, RegistryError
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import OCI_LAYER, Descriptor
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials
from pipeline.registry.download import chunks
from pipeline.registry.referrers import referrers
from pipeline.registry.session import RetryPolicy
from tests.support.servers.fake_registry import Body, Streamed

HOST = "registry.example.com"
BLOB = Descriptor(media_type=OCI_LAYER, digest=Digest.of(b"1234"), size=4)
NESTED = b"[" * 200_000


def client(handler: Callable[[httpx.Request], httpx.Response]) -> RegistryClient:
    return RegistryClient(
        HOST,
        credentials=lambda _: Credentials(username="u", password="p"),
        patience=RetryPolicy(attempts=2, first=0.0, longest=1.0, sleep=lambda _: None),
        transport=Streamed(handler),
    )


@pytest.mark.parametrize(
    "value", ["\u00b2", "9" * 400, "-1", "1e9", "Mon, 01 Jan 0001 00:00:00 GMT", "Mon, 01 Jan 99999 00:00:00"]
)
def test_an_invalid_time_to_wait(value: str) -> None:
    headers = [(b"Retry-After", value.encode("latin-1"))]
    with client(lambda _: httpx.Response(429, headers=headers)) as registry, pytest.raises(RegistryError):
        registry.ping()


@pytest.mark.parametrize(
    "value", ["bytes 2-3/" + "9" * 5000, "bytes " + "1" * 5000 + "-3/4", "bytes \u00b2-3/4"]
)
def test_an_invalid_range(value: str) -> None:
    headers = [(b"Content-Range", value.encode("latin-1"))]
    with (
        client(lambda _: httpx.Response(206, headers=headers, content=b"34")) as registry,
        pytest.raises(RegistryError, match="asked from byte 2"),
    ):
        list(chunks(registry.session, "a/b", BLOB, offset=2))


def test_an_invalid_place_in_an_upload() -> None:
    sent: list[tuple[str, bytes]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append((request.method, request.read()))
        if request.method == "HEAD":
            return httpx.Response(404)
        headers = {"Location": "/v2/a/b/blobs/uploads/1", "Range": "0-" + "9" * 5000}
        return httpx.Response(
            {"POST": 202, "PATCH": 202, "PUT": 201}.get(request.method, 404), headers=headers
        )

    with client(answer) as registry:
        registry.push_blob("a/b", BLOB, lambda offset: iter([b"1234"[offset:]]))
    assert b"".join(body for method, body in sent if method in ("PATCH", "PUT")) == b"1234"
    assert sent[-1][0] == "PUT"


def signing_in(realm: str, token: Callable[[], httpx.Response]) -> Callable[[httpx.Request], httpx.Response]:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == "auth.example.com":
            return token()
        if "authorization" in request.headers:
            return httpx.Response(200)
        challenge = f'Bearer realm="{realm}",service="s"'
        return httpx.Response(401, headers={"WWW-Authenticate": challenge})

    return answer


@pytest.mark.parametrize("realm", ["https://[", "https://h.example:99999999/t", "https://h.example:x/"])
def test_a_token_server_without_an_address(realm: str) -> None:
    with (
        client(signing_in(realm, lambda: httpx.Response(200))) as registry,
        pytest.raises(RegistryError, match="which is not a valid address"),
    ):
        registry.ping()


@pytest.mark.parametrize(
    "answer",
    [
        {"token": "a\r\nX-Evil: 1"},
        {"token": "\u00e9"},
        {"token": ["a"]},
        {"token": "a", "expires_in": [1]},
        {"token": "a", "expires_in": 10**400},
        [],
        None,
    ],
    ids=str,
)
def test_an_invalid_token(answer: Any) -> None:
    body = json.dumps(answer).encode()
    token = lambda: httpx.Response(200, content=body)  # noqa: E731
    with (
        client(signing_in("https://auth.example.com/t", token)) as registry,
        pytest.raises(RegistryError, match="an answer without a token"),
    ):
        registry.ping()


@pytest.mark.parametrize("body", [NESTED, b"", b"\xff"], ids=["nested", "empty", "not text"])
def test_a_token_in_no_json(body: bytes) -> None:
    token = lambda: httpx.Response(200, content=body)  # noqa: E731
    with (
        client(signing_in("https://auth.example.com/t", token)) as registry,
        pytest.raises(RegistryError, match="an answer without a token"),
    ):
        registry.ping()


class Endless(httpx.SyncByteStream):
    given = 0

    def __iter__(self) -> Iterator[bytes]:
        while True:
            self.given += 1 << 20
            assert self.given < 64 << 20, "it is read without end"
            yield bytes(1 << 20)


def test_a_token_of_gigabytes_is_not_read() -> None:
    class Transport(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if request.url.host == "auth.example.com":
                return httpx.Response(200, stream=Endless())
            challenge = 'Bearer realm="https://auth.example.com/t"'
            return httpx.Response(401, headers={"WWW-Authenticate": challenge}, stream=Body(b""))

    with (
        RegistryClient(HOST, credentials=lambda _: None, transport=Transport()) as registry,
        pytest.raises(RegistryError, match="more than 4 MiB"),
    ):
        registry.ping()


@pytest.mark.parametrize("status", [200, 500])
def test_lists_nested_without_end(status: int) -> None:
    with (
        client(lambda _: httpx.Response(status, content=b'{"tags":' + NESTED)) as registry,
        pytest.raises(RegistryError),
    ):
        registry.tags("a/b")


@pytest.mark.parametrize("link", ["https://h.example:x/", "https://h.example:99999999/"])
def test_a_list_whose_next_page_is_nowhere(link: str) -> None:
    headers = {"Link": f'<{link}>; rel="next"'}
    with (
        client(lambda _: httpx.Response(200, headers=headers, content=b'{"tags":["a"]}')) as registry,
        pytest.raises(RegistryError, match="not a valid address"),
    ):
        registry.tags("a/b")


@pytest.mark.parametrize("size", ["x", None, [1], -1, 1e300])
def test_a_referrer_of_no_size(size: object) -> None:
    entry = {"digest": str(BLOB.digest), "size": size}
    body = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    with (
        client(lambda _: httpx.Response(200, content=body)) as registry,
        pytest.raises(FormatError, match="not a size"),
    ):
        referrers(registry, "a/b", BLOB.digest)
