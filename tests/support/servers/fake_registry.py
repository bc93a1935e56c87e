"""A registry in memory behind an httpx transport: a token server, blobs, uploads in pieces, referrers.

Quick enough to try every kind of request with every kind of trouble; the real one is in
`tests.support.servers.registry`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx

from pipeline.oci.digest import Digest
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials
from pipeline.registry.session import RetryPolicy

HOST = "registry.example.com"
USER = Credentials(username="user", password="hunter2-of-the-fake")


Handler = Callable[[httpx.Request], httpx.Response]


class Streamed(httpx.BaseTransport):
    """Like httpx.MockTransport, with bodies that are still to be read, as from a network."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        answer = self._handler(request)
        return httpx.Response(answer.status_code, headers=answer.headers, stream=Body(answer.content))


class Body(httpx.SyncByteStream):
    def __init__(self, content: bytes) -> None:
        self._content = content

    def __iter__(self) -> Iterator[bytes]:
        yield self._content


@dataclass(slots=True, kw_only=True)
class Trouble:
    """What the next ``times`` requests of ``method`` whose path matches get instead of an answer."""

    method: str
    path: str
    status: int
    times: int
    headers: dict[str, str] = field(default_factory=dict)


class FakeRegistry:
    """Holds manifests by tag and digest, blobs by digest, uploads by number."""

    def __init__(self, host: str = HOST) -> None:
        self.host = host
        self.manifests: dict[str, tuple[bytes, str]] = {}
        self.blobs: dict[str, bytes] = {}
        self.uploads: dict[str, bytes] = {}
        self.troubles: list[Trouble] = []
        self.seen: list[tuple[str, str]] = []
        self.slept: list[float] = []
        self.cut_next_patch = False

    def client(self, attempts: int = 4) -> RegistryClient:
        """A client of it whose waiting is noted and takes no time."""
        patience = RetryPolicy(attempts=attempts, sleep=self.slept.append)
        transport = Streamed(self._answer)
        return RegistryClient(self.host, credentials=lambda _: USER, patience=patience, transport=transport)

    def count(self, method: str, path: str) -> int:
        return sum(1 for seen, where in self.seen if seen == method and re.search(path, where))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.seen.append((request.method, path))
        for trouble in self.troubles:
            if trouble.times and trouble.method == request.method and re.search(trouble.path, path):
                trouble.times -= 1
                return httpx.Response(trouble.status, headers=trouble.headers, text="<html>trouble</html>")
        if path == "/token":
            return httpx.Response(200, json={"token": "bought", "expires_in": 300})
        if request.headers.get("Authorization") != "Bearer bought":
            challenge = f'Bearer realm="https://{self.host}/token",service="fake"'
            return httpx.Response(401, headers={"WWW-Authenticate": challenge})
        match = re.fullmatch(r"/v2/(?:.+?)/(manifests|blobs/uploads|blobs|tags|referrers)/(.*)", path)
        assert match is not None, path
        kind, rest = match.groups()
        if kind == "blobs/uploads":
            return self._upload(request, rest)
        return {"manifests": self._manifest, "blobs": self._blob, "tags": self._tags}.get(
            kind, self._referrers
        )(request, rest)

    def _manifest(self, request: httpx.Request, reference: str) -> httpx.Response:
        if request.method == "PUT":
            raw = request.read()
            digest = str(Digest.of(raw))
            for name in (reference, digest):
                self.manifests[name] = (raw, request.headers["Content-Type"])
            return httpx.Response(201, headers={"Docker-Content-Digest": digest})
        if reference not in self.manifests:
            return _unknown("MANIFEST_UNKNOWN")
        raw, media_type = self.manifests[reference]
        headers = {"Docker-Content-Digest": str(Digest.of(raw)), "Content-Type": media_type}
        if request.method == "HEAD":
            return httpx.Response(200, headers={**headers, "Content-Length": str(len(raw))})
        return httpx.Response(200, content=raw, headers=headers)

    def _blob(self, request: httpx.Request, digest: str) -> httpx.Response:
        if digest not in self.blobs:
            return _unknown("BLOB_UNKNOWN")
        data = self.blobs[digest]
        if request.method == "HEAD":
            return httpx.Response(200, headers={"Content-Length": str(len(data))})
        return httpx.Response(200, content=data)

    def _upload(self, request: httpx.Request, number: str) -> httpx.Response:
        if request.method == "POST" and request.url.params.get("mount") in self.blobs:
            return httpx.Response(201)
        if request.method == "POST":
            number = str(len(self.uploads))
            self.uploads[number] = b""
            return httpx.Response(202, headers=self._where(number))
        if request.method == "PATCH":
            body = request.read()
            if self.cut_next_patch:
                self.cut_next_patch = False
                self.uploads[number] += body[: len(body) // 2]
                raise httpx.RemoteProtocolError("cut")
            self.uploads[number] += body
            return httpx.Response(202, headers=self._where(number))
        if request.method == "PUT":
            data = self.uploads.pop(number)
            digest = str(Digest.of(data))
            if request.url.params["digest"] != digest:
                return httpx.Response(400, json={"errors": [{"code": "DIGEST_INVALID"}]})
            self.blobs[digest] = data
            return httpx.Response(201)
        return httpx.Response(204, headers=self._where(number))

    def _where(self, number: str) -> dict[str, str]:
        last = max(0, len(self.uploads[number]) - 1)
        return {"Location": f"/v2/a/b/blobs/uploads/{number}", "Range": f"0-{last}"}

    def _tags(self, _request: httpx.Request, _rest: str) -> httpx.Response:
        return httpx.Response(
            200, json={"name": "a/b", "tags": [tag for tag in self.manifests if ":" not in tag]}
        )

    def _referrers(self, request: httpx.Request, subject: str) -> httpx.Response:
        """One entry a page."""
        entries = [
            {"mediaType": media_type, "digest": str(Digest.of(raw)), "size": len(raw), **_kind(raw)}
            for name, (raw, media_type) in sorted(self.manifests.items())
            if ":" in name and json.loads(raw).get("subject", {}).get("digest") == subject
        ]
        page = int(request.url.params.get("page", "0"))
        headers = {}
        if page + 1 < len(entries):
            headers["Link"] = f'<{request.url.path}?page={page + 1}>; rel="next"'
        body = {"schemaVersion": 2, "manifests": entries[page : page + 1]}
        return httpx.Response(200, json=body, headers=headers)


def _kind(raw: bytes) -> dict[str, str]:
    return {"artifactType": str(json.loads(raw).get("artifactType", ""))}


def _unknown(code: str) -> httpx.Response:
    return httpx.Response(404, json={"errors": [{"code": code}]})
