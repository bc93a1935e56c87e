"""What a bucket answered was believed: a cut object was whole and wrong, a page without a list was empty.

Objects were read into memory whatever size they had by then, and one bad object stopped the copies of all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.aws.s3 import S3Bucket
from pipeline.errors import SqshpipeError, ToolError, VerificationError
from pipeline.store.attachments import LIMIT
from pipeline.store.store import Store
from pipeline.store.sync import sync
from tests.support.servers.odd_s3 import OddS3, Request, odd_s3
from tests.support.store.releases import new_store, publish

BESIDE = "pre/demo/.meta/v1.0/"
RECORD = "pre/demo/v1.0.json"
CONTENT = b"one" * 50_000


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OddS3]:
    """demo:v1.0 and, newer, demo:v1.1 under s3://b/pre."""
    store = new_store(tmp_path / "source")
    publish(store, "v1.0", CONTENT)
    publish(store, "v1.1")
    files = [*(store.root / "demo").glob("v*.json"), *store.layout.blobs.glob("*.sqsh")]
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with odd_s3({f"pre/{path.relative_to(store.root)}": path.read_bytes() for path in files}) as made:
        for name, value in {"ENDPOINT_URL": made.url, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield made


@pytest.fixture
def target(tmp_path: Path) -> Store:
    return new_store(tmp_path / "target")


def blob(server: OddS3) -> str:
    return next(key for key, content in server.objects.items() if content == CONTENT)


def always(status: int, body: bytes, *, key: str) -> Callable[[Request], bool]:
    def fault(request: Request) -> bool:
        if request.key == key:
            request.answer(status, body)
        return request.key == key

    return fault


def copied(target: Store) -> list[str]:
    return [version for version in ("v1.0", "v1.1") if target.release("demo", version) is not None]


def test_an_answer_that_is_cut_is_resumed(server: OddS3, target: Store) -> None:
    """It was taken for the whole, called wrong content of the source, and thrown away."""

    def cut(request: Request) -> bool:
        if request.key != blob(server) or request.command == "HEAD":
            return False
        request.answer(206, CONTENT[:100_000], length=len(CONTENT))
        return True

    server.fault = cut
    with pytest.raises(ToolError, match="100000 read, but total bytes expected is 150000"):
        sync(S3Bucket("s3://b/pre"), target)
    (left,) = target.layout.blobs.glob(".tmp.*.sync")
    assert left.stat().st_size == 100_000


LISTINGS = {
    "empty": b"",
    "html": b"<html>sign in</html>",
    "size is no number": b"<ListBucketResult><IsTruncated>false</IsTruncated>"
    b"<Contents><Key>pre/x</Key><Size>zz</Size></Contents></ListBucketResult>",
    "no size": b"<ListBucketResult><IsTruncated>false</IsTruncated>"
    b"<Contents><Key>pre/x</Key></Contents></ListBucketResult>",
    "no key": b"<ListBucketResult><IsTruncated>false</IsTruncated>"
    b"<Contents><Size>1</Size></Contents></ListBucketResult>",
    "more, and no token": b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
}


@pytest.mark.parametrize("body", LISTINGS.values(), ids=LISTINGS)
def test_what_is_no_complete_listing_is_not_an_empty_bucket(
    server: OddS3, target: Store, body: bytes
) -> None:
    server.fault = always(200, body, key="")
    with pytest.raises(ToolError, match="not what S3 answers"):
        sync(S3Bucket("s3://b/pre"), target)


def other(server: OddS3, **changes: object) -> bytes:
    record = json.loads(server.objects[RECORD])
    del record["crc32"]
    return json.dumps({**record, **changes}).encode()


ONE_IS_BAD: dict[str, Callable[[OddS3], object]] = {
    "no bytes": lambda server: server.objects.pop(blob(server)),
    "fewer bytes": lambda server: server.objects.update({blob(server): b"one"}),
    "other bytes": lambda server: server.objects.update({blob(server): CONTENT[::-1]}),
    "a size of a terabyte": lambda server: server.objects.update({RECORD: other(server, size=10**12)}),
    "a size of nothing": lambda server: server.objects.update({RECORD: other(server, size=0)}),
    "half a record": lambda server: server.objects.update({RECORD: server.objects[RECORD][:99]}),
    "another's record": lambda server: server.objects.update({RECORD: other(server, version="v9")}),
    "a name that leads out": lambda server: server.objects.update({BESIDE + "..": b"x"}),
    "a name of two lines": lambda server: server.objects.update({BESIDE + "a\nb": b"x"}),
}


@pytest.mark.parametrize("harm", ONE_IS_BAD.values(), ids=ONE_IS_BAD)
def test_one_bad_release_does_not_stop_the_others(
    server: OddS3, target: Store, harm: Callable[[OddS3], object]
) -> None:
    harm(server)
    try:
        report = sync(S3Bucket("s3://b/pre"), target)
        assert len([*report.refused, *report.broken]) == 1
    except VerificationError as error:
        assert "v1.0" in error.message or "is missing" in error.message
    assert copied(target) == ["v1.1"]
    assert not [left for left in target.layout.blobs.glob(".tmp.*") if left.stat().st_size]


def test_nothing_of_bytes_that_do_not_arrive_stays(server: OddS3, target: Store) -> None:
    """An SBOM stayed, and a version of that name that was published here later took it for its own."""
    key = blob(server)
    server.objects |= {BESIDE + "sbom.cdx.json": b"{}", key: CONTENT[::-1]}
    with pytest.raises(VerificationError):
        sync(S3Bucket("s3://b/pre"), target)
    beside = target.layout.attachments("demo", "v1.0", "linux/amd64")
    assert not (beside / "sbom.cdx.json").exists()
    server.objects[key] = CONTENT
    sync(S3Bucket("s3://b/pre"), target)
    assert (beside / "sbom.cdx.json").read_bytes() == b"{}"


def test_what_stands_for_a_folder_is_no_attachment(server: OddS3, target: Store) -> None:
    """Consoles and mounts of buckets make such objects; the release was refused for it."""
    server.objects |= {"pre/": b"", "pre/demo/": b"", BESIDE: b"", BESIDE + "deep/" * 300: b""}
    assert len(sync(S3Bucket("s3://b/pre"), target).copied) == 2


@pytest.mark.parametrize(("key", "limit"), [(RECORD, 16 << 20), (BESIDE + "sbom.cdx.json", LIMIT)])
def test_an_object_that_has_grown_since_the_listing_is_not_read(
    server: OddS3, target: Store, key: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.store.attachments.LIMIT", 1 << 20)
    server.objects.setdefault(key, b"{}")
    sent = 0

    def grown(request: Request) -> bool:
        nonlocal sent
        if request.key != key:
            return False
        request.answer(200, length=1 << 40)
        try:
            while sent < 100 << 20:
                sent += request.connection.send(b" " * (1 << 20))
        except OSError:
            pass
        return True

    server.fault = grown
    (sentence,) = sync(S3Bucket("s3://b/pre"), target).broken
    assert "is larger than" in sentence
    assert copied(target) == ["v1.1"]
    assert sent < 40 << 20


@pytest.mark.parametrize("status", [301, 307])
def test_a_redirect_of_everything_is_one_sentence(server: OddS3, status: int) -> None:
    """boto3 asked where the bucket is, was redirected, and asked again until Python's stack was full."""

    def fault(request: Request) -> bool:
        request.answer(status)
        return True

    server.fault = fault
    with pytest.raises(ToolError, match="not what S3 answers"):
        S3Bucket("s3://b/pre").read("x", 0, 10)


@pytest.mark.parametrize(("status", "of"), [(503, ToolError), (500, ToolError), (403, VerificationError)])
def test_a_service_that_fails_is_not_an_object_that_does(
    server: OddS3, status: int, of: type[SqshpipeError]
) -> None:
    """Each object was asked for, with boto3's patience, although the service answered SlowDown to all."""
    server.fault = always(status, b"<Error><Code>SlowDown</Code></Error>", key="pre/x")
    with pytest.raises(SqshpipeError) as caught:
        S3Bucket("s3://b/pre").read("x", 0, 10)
    assert type(caught.value) is of
