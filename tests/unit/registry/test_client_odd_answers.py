"""Registries and proxies that answer in their own way: no HEAD, odd challenges, links, resumes, locations."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from pipeline.errors import RegistryError
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import OCI_INDEX, OCI_LAYER, Descriptor
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials
from pipeline.registry.download import chunks
from pipeline.registry.session import RetryPolicy
from pipeline.registry.tags import known_tags
from tests.support.servers.fake_registry import Handler, Streamed

HOST = "r.example.com"
USER = Credentials(username="user", password="hunter2")
INDEX = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()
DIGEST = str(Digest.of(INDEX))


@contextmanager
def client(handler: Handler) -> Iterator[RegistryClient]:
    patience = RetryPolicy(attempts=3, first=0.0, longest=1.0, sleep=lambda _: None)
    with RegistryClient(
        HOST, credentials=lambda _: USER, patience=patience, transport=Streamed(handler)
    ) as made:
        yield made


# HEAD

Answer = Callable[[], httpx.Response]
ODD_HEADS: dict[str, Answer] = {
    **{
        str(status): lambda status=status: httpx.Response(status)
        for status in (204, 400, 401, 402, 403, 404, 405, 406, 409, 411, 415, 418, 421, 451, 500, 501, 505)
    },
    "no digest": lambda: httpx.Response(200, headers={"Content-Type": OCI_INDEX, "Content-Length": "9"}),
    "bad digest": lambda: httpx.Response(
        200,
        headers={"Content-Type": OCI_INDEX, "Content-Length": "9", "Docker-Content-Digest": "md5:x"},
    ),
    "no type": lambda: httpx.Response(200, headers={"Content-Length": "9", "Docker-Content-Digest": DIGEST}),
    "guessed type": lambda: httpx.Response(
        200,
        headers={
            "Content-Type": "application/json",
            "Content-Length": "9",
            "Docker-Content-Digest": DIGEST,
        },
    ),
    "no length": lambda: httpx.Response(
        200,
        headers={"Content-Type": OCI_INDEX, "Content-Length": "0", "Docker-Content-Digest": DIGEST},
    ),
}


@pytest.mark.parametrize("odd", ODD_HEADS)
@pytest.mark.parametrize("reference", ["v1", DIGEST])
@pytest.mark.parametrize("challenged", [False, True])
def test_what_head_does_not_say_is_computed_from_the_bytes(
    odd: str, reference: str, *, challenged: bool
) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "HEAD":
            return ODD_HEADS[odd]()
        if challenged and "authorization" not in request.headers:
            return httpx.Response(401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        return httpx.Response(200, content=INDEX, headers={"Content-Type": OCI_INDEX})

    with client(handler) as registry:
        found = registry.head("a/b", reference)
    assert found is not None
    assert (str(found.digest), found.size, found.media_type) == (DIGEST, len(INDEX), OCI_INDEX)


def test_a_manifest_that_is_nowhere_is_not_there() -> None:
    with client(lambda _: httpx.Response(404)) as registry:
        assert registry.head("a/b", "v1") is None


def test_bytes_that_are_not_what_was_asked_for_are_refused_without_head_too() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "HEAD":
            return httpx.Response(405)
        return httpx.Response(200, content=INDEX, headers={"Content-Type": OCI_INDEX})

    with client(handler) as registry, pytest.raises(RegistryError, match="something else"):
        registry.head("a/b", str(Digest.of(b"other")))


def test_a_refused_password_is_not_tried_with_get_again() -> None:
    asked = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.method)
        return httpx.Response(401, headers={"WWW-Authenticate": 'Basic realm="x"'})

    with client(handler) as registry, pytest.raises(RegistryError, match="refuses the password"):
        registry.head("a/b", "v1")
    assert asked == ["HEAD", "HEAD"]


def test_a_manifest_without_end_is_bounded() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return (
            httpx.Response(405) if request.method == "HEAD" else httpx.Response(200, content=b"x" * (5 << 20))
        )

    with client(handler) as registry, pytest.raises(RegistryError, match="more than 4 MiB"):
        registry.head("a/b", "v1")


# challenges


@pytest.mark.parametrize(
    "lines",
    [
        ["Negotiate", 'Bearer realm="https://auth.example.com/t",service="s"'],
        ['Negotiate, NTLM, Bearer realm="https://auth.example.com/t",service="s"'],
        ['Bearer realm="https://auth.example.com/t",service="s"', "Negotiate"],
        ["Bearer", 'Bearer realm="https://auth.example.com/t",service="s"'],
        ['Basic realm="not, closed', 'Bearer realm="https://auth.example.com/t",service="s"'],
    ],
)
def test_a_scheme_beside_bearer_does_not_hide_it(lines: list[str]) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.host == "auth.example.com":
            assert request.headers["authorization"] == USER.basic()
            return httpx.Response(200, json={"token": "t"})
        if request.headers.get("authorization") != "Bearer t":
            return httpx.Response(401, headers=[("WWW-Authenticate", line) for line in lines])
        return httpx.Response(200, content=INDEX, headers={"Content-Type": OCI_INDEX})

    with client(handler) as registry:
        assert registry.head("a/b", "v1") is not None


def test_a_service_that_no_address_can_carry_is_an_error_of_one_sentence() -> None:
    challenge = f'Bearer realm="https://auth.example.com/t",service="{"s" * 66_000}"'
    answer = httpx.Response(401, headers={"WWW-Authenticate": challenge})
    with client(lambda _: answer) as registry, pytest.raises(RegistryError, match="service") as caught:
        registry.ping()
    assert len(str(caught.value)) < 500


def test_a_host_that_we_were_redirected_to_does_not_choose_where_the_password_goes() -> None:
    asked = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        if request.url.host == HOST:
            return httpx.Response(307, headers={"Location": "https://cdn.example.com/x"})
        return httpx.Response(401, headers={"WWW-Authenticate": 'Bearer realm="https://evil.example.com/t"'})

    with client(handler) as registry, pytest.raises(RegistryError):
        list(chunks(registry.session, "a/b", BLOB))
    assert "evil.example.com" not in asked


# pages


def paged(link: str, *, second: str) -> Handler:
    def handler(request: httpx.Request) -> httpx.Response:
        if "last" not in request.url.params:
            return httpx.Response(200, json={"tags": ["old"]}, headers={"Link": link, "ETag": '"x"'})
        assert request.url.path == second
        return httpx.Response(200, json={"tags": ["new"]})

    return handler


LISTED = "/v2/a/b/tags/list"


@pytest.mark.parametrize(
    "link",
    [
        f'<{LISTED}?last=old>; title="a, b"; rel="next"',
        '<?last=old>; rel="last next"',
        f"<https://{HOST}{LISTED}?n=1000&last=old>; REL=next",
        f'<{LISTED}>; rel="first", <list?last=old>; rel="next"',
    ],
)
def test_every_page_of_tags_is_read(link: str, tmp_path: Path) -> None:
    with client(paged(link, second=LISTED)) as registry:
        assert registry.tags("a/b") == ["new", "old"]
        assert known_tags(registry, "a/b", tmp_path) == ["new", "old"]


def test_a_link_to_another_page_than_the_next_keeps_the_etag(tmp_path: Path) -> None:
    with client(paged('</v2/a/b/tags/list>; rel="first"', second="")) as registry:
        assert known_tags(registry, "a/b", tmp_path) == ["old"]
    assert list(tmp_path.rglob("*.json"))


def test_pages_elsewhere_get_no_credentials() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.host != HOST:
            assert "authorization" not in request.headers
            return httpx.Response(200, json={"tags": ["new"]})
        if "authorization" not in request.headers:
            return httpx.Response(401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        link = '<https://other.example.com/list>; rel="next"'
        return httpx.Response(200, json={"tags": ["old"]}, headers={"Link": link})

    with client(handler) as registry:
        assert registry.tags("a/b") == ["new", "old"]


@pytest.mark.parametrize("target", ["", LISTED + "?n=1000", LISTED])
def test_pages_in_circles_end(target: str) -> None:
    asked = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(200, json={"tags": ["a"]}, headers={"Link": f"<{target}>; rel=next"})

    with client(handler) as registry, pytest.raises(RegistryError, match="without an end"):
        registry.tags("a/b")
    assert len(asked) < 4


# resumes

DATA = bytes(range(256)) * 8192  # 2 MiB
BLOB = Descriptor(media_type=OCI_LAYER, digest=Digest.of(DATA), size=len(DATA))
CUT = (1 << 20) + 77


def part(start: int, data: bytes, total: int | str = len(DATA)) -> httpx.Response:
    headers = {"Content-Range": f"bytes {start}-{start + len(data) - 1}/{total}"}
    return httpx.Response(206, content=data, headers=headers)


BAD_RESUMES: dict[str, Answer] = {
    **{str(status): lambda status=status: httpx.Response(status) for status in (400, 403, 416, 501)},
    "another start": lambda: part(5, DATA[5:]),
    "another size": lambda: part(CUT, DATA[CUT:], len(DATA) + 1),
    "no range": lambda: httpx.Response(206, content=DATA[CUT:]),
    "another unit": lambda: httpx.Response(206, content=DATA[CUT:], headers={"Content-Range": "pages 1-2/3"}),
    "all of it": lambda: httpx.Response(200, content=DATA),
}


class Cut(httpx.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        yield DATA[:CUT]
        raise httpx.ReadError("cut")


class CutOnce(httpx.BaseTransport):
    """The first answer to a request for the blob is cut; a resume is answered with ``bad``."""

    def __init__(self, bad: Answer, whole: Answer = lambda: httpx.Response(200, content=DATA)) -> None:
        self._bad = bad
        self._whole = whole
        self.ranges: list[str | None] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.ranges.append(request.headers.get("Range"))
        if len(self.ranges) == 1:
            return httpx.Response(200, stream=Cut())
        answer = self._bad() if self.ranges[-1] else self._whole()
        return Streamed(lambda _: answer).handle_request(request)


@contextmanager
def cut_client(transport: CutOnce) -> Iterator[RegistryClient]:
    patience = RetryPolicy(attempts=3, first=0.0, longest=1.0, sleep=lambda _: None)
    with RegistryClient(HOST, credentials=lambda _: None, patience=patience, transport=transport) as made:
        yield made


@pytest.mark.parametrize("bad", BAD_RESUMES)
@pytest.mark.parametrize("way", ["stream", "file", "read"])
def test_a_resume_with_a_bad_answer_starts_anew(bad: str, way: str, tmp_path: Path) -> None:
    transport = CutOnce(BAD_RESUMES[bad])
    with cut_client(transport) as registry:
        if way == "stream":
            with registry.open_blob("a/b", BLOB) as stream:
                assert stream.read() == DATA
        elif way == "file":
            assert registry.fetch_blob("a/b", BLOB, tmp_path / "blob").read_bytes() == DATA
        else:
            assert registry.read_blob("a/b", BLOB) == DATA
    assert transport.ranges == [None, f"bytes={CUT}-", *([] if bad == "all of it" else [None])]


def test_a_blob_that_differs_when_it_is_sent_anew_is_refused() -> None:
    other = DATA[:-1] + b"x"
    transport = CutOnce(lambda: httpx.Response(416), lambda: httpx.Response(200, content=other))
    with (
        cut_client(transport) as registry,
        pytest.raises(RegistryError, match="other bytes"),
        registry.open_blob("a/b", BLOB) as stream,
    ):
        stream.read()


def test_a_partial_file_of_another_blob_is_fetched_anew(tmp_path: Path) -> None:
    (tmp_path / "blob.partial").write_bytes(b"x" * 4096)
    with client(
        lambda request: httpx.Response(416 if "range" in request.headers else 200, content=DATA)
    ) as registry:
        assert registry.fetch_blob("a/b", BLOB, tmp_path / "blob").read_bytes() == DATA


# locations of uploads


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("1", "/v2/a/b/blobs/uploads/1"),
        ("./1?_state=x%3D", "/v2/a/b/blobs/uploads/1"),
        ("../up/1", "/v2/a/b/blobs/up/1"),
        ("/elsewhere/1?", "/elsewhere/1"),
        ("//r.example.com/abs/1#part", "/abs/1"),
        ("?upload=1", "/v2/a/b/blobs/uploads/"),
    ],
)
def test_an_upload_goes_where_its_location_says(location: str, expected: str) -> None:
    seen = []

    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "HEAD":
            return httpx.Response(404)
        seen.append((request.method, request.url.path))
        if request.method == "PUT":
            assert request.url.params["digest"] == str(BLOB.digest)
            assert "#" not in str(request.url)
            return httpx.Response(201)
        if request.method == "PATCH":
            return httpx.Response(202, headers={"Location": str(request.url), "Range": f"0-{BLOB.size - 1}"})
        return httpx.Response(202, headers={"Location": location})

    with client(handler) as registry:
        assert registry.push_blob("a/b", BLOB, lambda offset: iter([DATA[offset:]]))
    assert seen == [("POST", "/v2/a/b/blobs/uploads/"), ("PATCH", expected), ("PUT", expected)]


def test_a_registry_that_does_not_answer_head_of_blobs_gets_the_blob() -> None:
    with client(lambda request: httpx.Response(405 if request.method == "HEAD" else 500)) as registry:
        assert not registry.has_blob("a/b", BLOB.digest)
