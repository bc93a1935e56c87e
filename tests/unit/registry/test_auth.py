"""Challenges, tokens, and who is shown what, without a network."""

from __future__ import annotations

import base64
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from pipeline.errors import RegistryError
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import OCI_MANIFEST
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials
from pipeline.registry.errors import Refused
from pipeline.registry.headers import parse_challenges
from pipeline.registry.session import RetryPolicy
from tests.support.servers.fake_registry import Handler, Streamed

QUICK = RetryPolicy(attempts=3, first=0.0, longest=1.0, sleep=lambda _: None)
USER = Credentials(username="user", password="hunter2")


def client(
    handler: Handler, host: str = "r.example.com", credentials: object = lambda _: USER
) -> RegistryClient:
    return RegistryClient(
        host,
        credentials=credentials,  # type: ignore[arg-type]
        patience=QUICK,
        transport=Streamed(handler),
    )


def found(_: httpx.Request) -> httpx.Response:
    headers = {
        "Docker-Content-Digest": str(Digest.of(b"x")),
        "Content-Type": OCI_MANIFEST,
        "Content-Length": "1",
    }
    return httpx.Response(200, headers=headers)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('Basic realm="x"', [("basic", {"realm": "x"})]),
        (
            'Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push"',
            [("bearer", {"realm": "https://a/t", "service": "s", "scope": "repository:a/b:pull,push"})],
        ),
        ("BASIC Realm=x", [("basic", {"realm": "x"})]),
        (
            'Basic realm="a \\"b\\"", Bearer realm="c"',
            [("basic", {"realm": 'a "b"'}), ("bearer", {"realm": "c"})],
        ),
        ("Negotiate", [("negotiate", {})]),
        ("", []),
        ("=,=", []),
    ],
)
def test_challenges_are_read(header: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    assert [(c.scheme, dict(c.parameters)) for c in parse_challenges(header)] == expected


def test_a_public_registry_is_shown_nothing() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert "authorization" not in request.headers
        return found(request)

    assert client(handler).head("a/b", "v1") is not None


def test_a_token_is_bought_once_and_its_end_is_known() -> None:
    bought = []

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.host == "auth.example.com":
            bought.append(dict(request.url.params))
            assert request.headers["authorization"] == USER.basic()
            return httpx.Response(200, json={"access_token": f"t{len(bought)}", "expires_in": 300})
        if request.headers.get("authorization") != f"Bearer t{len(bought)}" or not bought:
            challenge = 'Bearer realm="https://auth.example.com/token",service="r"'
            return httpx.Response(401, headers={"WWW-Authenticate": challenge})
        return found(request)

    with client(handler) as made:
        threads = [threading.Thread(target=made.head, args=("a/b", "v1")) for _ in range(8)]
        made.head("a/b", "v1")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert bought == [{"service": "r", "scope": "repository:a/b:pull"}]
        made.head("c/d", "v1")
        assert len(bought) == 2


def test_tokens_for_several_repositories_are_bought_side_by_side() -> None:
    together = threading.Barrier(3)

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/token":
            if "base" in request.url.params["scope"]:
                together.wait(10)  # breaks, and fails the request, when one waits for another
            return httpx.Response(200, json={"token": "t"})
        if request.headers.get("authorization") != "Bearer t":
            return httpx.Response(
                401, headers={"WWW-Authenticate": 'Bearer realm="https://a.example.com/token"'}
            )
        return found(request)

    with client(handler) as made, ThreadPoolExecutor(3) as pool:
        made.head("first", "v1")
        assert all(pool.map(lambda number: made.head(f"base{number}", "v1"), range(3)))


def test_an_identity_token_is_sent_as_a_refresh_token() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/token":
            form = dict(httpx.QueryParams(request.content.decode()))
            assert (form["grant_type"], form["refresh_token"]) == ("refresh_token", "identity")
            assert form["scope"] == "repository:a/b:pull"
            assert "authorization" not in request.headers
            return httpx.Response(200, json={"access_token": "t"})
        if request.headers.get("authorization") != "Bearer t":
            return httpx.Response(
                401, headers={"WWW-Authenticate": 'Bearer realm="https://a.example.com/token"'}
            )
        return found(request)

    holder = Credentials(username="", password="", identity_token="identity")
    assert client(handler, credentials=lambda _: holder).head("a/b", "v1") is not None


def test_a_password_is_not_sent_to_a_realm_without_tls() -> None:
    asked = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        return httpx.Response(401, headers={"WWW-Authenticate": 'Bearer realm="http://evil.example.com/t"'})

    with pytest.raises(RegistryError, match="not https"):
        client(handler).head("a/b", "v1")
    assert asked == ["r.example.com"]


def test_a_password_that_is_refused_is_not_tried_again() -> None:
    asked = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers.get("authorization"))
        return httpx.Response(401, headers={"WWW-Authenticate": 'Basic realm="x"'})

    with pytest.raises(Refused, match="refuses the password") as caught:
        client(handler).head("a/b", "v1")
    assert asked == [None, USER.basic()]
    for text in ("hunter2", base64.b64encode(b"user:hunter2").decode()):
        assert text not in f"{caught.value} {caught.value!r} {caught.getrepr(style='long')}"


class Renewing:
    """Like ECR's: the first password has expired."""

    def __init__(self) -> None:
        self.renewed = 0

    def __call__(self, _host: str) -> Credentials:
        return Credentials(username="AWS", password=f"p{self.renewed}")

    def renew(self, host: str) -> Credentials:
        self.renewed += 1
        return self(host)


@pytest.mark.parametrize(("status", "code"), [(401, "UNAUTHORIZED"), (403, "DENIED")])
def test_an_expired_password_is_renewed_once(status: int, code: str) -> None:
    provider = Renewing()
    fresh = "Basic " + base64.b64encode(b"AWS:p1").decode()

    def handler(request: httpx.Request) -> httpx.Response:
        authorization = request.headers.get("authorization")
        if authorization is None:
            return httpx.Response(401, headers={"WWW-Authenticate": 'Basic realm="ecr"'})
        if authorization != fresh:
            body = {"errors": [{"code": code, "message": "Your authorization token has expired."}]}
            return httpx.Response(status, json=body, headers={"WWW-Authenticate": 'Basic realm="ecr"'})
        return found(request)

    with client(handler, credentials=provider) as made:
        assert made.head("a/b", "v1") is not None
    assert provider.renewed == 1


def test_other_answers_without_a_digest_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = json.dumps(
        {
            "schemaVersion": 2,
            "config": {"mediaType": "a/b", "digest": str(Digest.of(b"")), "size": 0},
            "layers": [],
        }
    ).encode()
    monkeypatch.delenv("SQSHPIPE_PLAIN_HTTP", raising=False)
    seen = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append((request.method, request.url.path, "index.v1+json" in request.headers["accept"]))
        return httpx.Response(
            200, content=raw if request.method == "GET" else b"", headers={"Content-Type": OCI_MANIFEST}
        )

    descriptor = client(handler, host="docker.io").head("library/debian", "12")
    assert descriptor is not None
    assert (descriptor.digest, descriptor.size) == (Digest.of(raw), len(raw))
    path = "/v2/library/debian/manifests/12"
    assert seen == [("HEAD", path, True), ("GET", path, True)]


def test_tags_follow_links_of_the_registry_alone() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.host == "r.example.com"
        last = request.url.params.get("last")
        if last is None:
            link = '</v2/a/b/tags/list?last=b&n=2>; rel="next"'
            return httpx.Response(200, json={"name": "a/b", "tags": ["a", "b"]}, headers={"Link": link})
        return httpx.Response(200, json={"name": "a/b", "tags": None})

    assert client(handler).tags("a/b") == ["a", "b"]


def test_an_endless_body_is_bounded() -> None:
    def handler(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=b"x" * (5 << 20), headers={"Content-Type": OCI_MANIFEST})

    with pytest.raises(RegistryError, match="more than 4 MiB"):
        client(handler).get_manifest("a/b", "v1")


def test_circles_end() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(307, headers={"Location": str(request.url)})

    with pytest.raises(RegistryError, match="in circles"):
        client(handler).head("a/b", "v1")
