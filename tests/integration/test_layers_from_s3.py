"""A machine that does not mount the store takes layers from its copy in S3; the file has the same bytes."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from pipeline.attest.signing import open_keys, open_signer
from pipeline.aws.s3 import S3Bucket
from pipeline.convert import from_bucket
from pipeline.convert.from_bucket import BucketReleases
from pipeline.convert.from_store import StoredLayers
from pipeline.convert.packing import pack_cache
from pipeline.convert.verify import verify
from pipeline.errors import ToolError
from pipeline.store import signatures
from pipeline.store.layout import LAYERS
from pipeline.store.record import EXTERNAL, Release
from pipeline.store.store import Store
from pipeline.store.sync import sync
from pipeline.store.trust import Required
from tests.support.images.layers import LayerBuilder, write_layout
from tests.support.servers import aws
from tests.support.store.releases import new_store
from tests.unit.convert.test_from_store import SHELL, Site, files, noise, top

MIB = 1 << 20
BASE = files("base", 40)
HIDING = LayerBuilder().whiteout("base/003").whiteout("base/large-2")
for _number in range(6):
    BASE.file(f"base/large-{_number}", noise(400_000, 80 + _number))
LAYERS_OF_ALL = [0, 1, 2, 3]
BESIDE = f"demo/.meta/v1.0/{LAYERS}"


class Bucket(S3Bucket):
    """Writes down what is asked for, and can do something before it answers."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.asked: list[tuple[str, int, int]] = []
        self.before: dict[int, Callable[[], None]] = {}

    def read(self, key: str, offset: int, length: int) -> bytes:
        self.asked.append((key, offset, length))
        self.before.get(len(self.asked), lambda: None)()
        return super().read(key, offset, length)

    def replace(self, key: str, content: bytes | None, **more: str) -> None:
        """Give an object other bytes, or delete it."""
        where = {"Bucket": self._bucket, "Key": self._prefix + key}
        if content is None:
            self._client.delete_object(**where)
        else:
            self._client.put_object(**where, Body=content, **more)

    def everything(self) -> dict[str, tuple[str, Any]]:
        """Each object with its ETag and when it was written."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket)
        found = [item for page in pages for item in page.get("Contents", ())]
        return {item["Key"]: (item["ETag"], item["LastModified"]) for item in found}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with aws.moto_server() as address:
        yield address


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    aws.use(monkeypatch, endpoint)
    boto3.client("s3").create_bucket(Bucket="containers")
    return Bucket("s3://containers/team/store")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, bytes]:
    """A store with v1.0, and the bytes of v1.1 as a machine makes it that has nothing but the registry."""
    folder = tmp_path_factory.mktemp("made")
    site = Site(folder, new_store(folder / "store"))
    site.release("v1.0", BASE, HIDING, top(1).file("old", noise(MIB)))
    return site.store, site.convert(BASE, HIDING, top(2), stored=False).path.read_bytes()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A store of its own, for tests that need other releases."""
    return Site(tmp_path, new_store(tmp_path / "store"))


def opened(site: Site, bucket: Bucket, **more: Any) -> BucketReleases:
    return BucketReleases(bucket.name, scratch=site.folder, open_bucket=lambda _: bucket, **more)


@pytest.fixture
def released(site: Site, bucket: Bucket, made: tuple[Store, bytes]) -> Release:
    """v1.0 in the bucket; the machines of `site` have that alone."""
    site.store = made[0]
    sync(site.store, bucket)
    site.copy = lambda: opened(site, bucket)
    return site.store.resolve("demo:v1.0")


@pytest.fixture
def cold(made: tuple[Store, bytes]) -> bytes:
    return made[1]


def convert(site: Site, cold: bytes, *, reads: list[int], synced: bool = True) -> None:
    """The result is what it always is; `reads` are the layers that come from the registry."""
    made = site.convert(BASE, HIDING, top(2), synced=synced)
    assert sorted(site.opened) == reads
    assert verify(made).checks
    assert made.path.read_bytes() == cold
    left = [path.name for path in site.folder.iterdir() if path.name.startswith("sqshpipe")]
    assert left == [], "a scratch folder stays"


def test_only_the_changed_layer_comes_from_the_registry(
    site: Site, released: Release, bucket: Bucket, cold: bytes
) -> None:
    before = bucket.everything()
    with structlog.testing.capture_logs() as logs:
        convert(site, cold, reads=[2])
    asked = sum(length for _, _, length in bucket.asked)
    assert {key for key, _, _ in bucket.asked} == {released.file}
    assert asked < released.size - MIB + (1 << 17), "the changed layer and the tables are not needed"
    assert len(bucket.asked) <= 8
    (taken,) = [entry for entry in logs if entry["event"] == "bytes by source"]
    assert 5 * 400_000 < taken[f"demo:v1.0 in {bucket.name}"] <= asked
    assert bucket.everything() == before, "something was written"


def test_without_the_setting_the_bucket_is_not_even_asked(
    site: Site, released: Release, bucket: Bucket, cold: bytes
) -> None:
    def refuse(_: str) -> Bucket:
        raise AssertionError

    site.copy = lambda: BucketReleases(bucket.name, scratch=site.folder, open_bucket=refuse)
    convert(site, cold, reads=LAYERS_OF_ALL, synced=False)


def test_requests_are_large_and_nothing_is_asked_for_twice(
    site: Site, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = LayerBuilder().file("large", noise(3 * MIB)).file("other", noise(5 * MIB, 2))
    site.release("v1.0", base, top(1))
    sync(site.store, bucket)
    site.copy = lambda: opened(site, bucket)
    monkeypatch.setattr(from_bucket, "_REQUEST", 32)
    site.same_as_cold(base, top(2), reads=[1], synced=True)
    lengths = [length for _, _, length in bucket.asked]
    assert max(lengths) == 2 * MIB
    assert len(lengths) <= 6
    chunks = [at >> 16 for _, begin, length in bucket.asked for at in range(begin, begin + length, 1 << 16)]
    assert len(chunks) == len(set(chunks))


def test_what_lies_near_is_one_request(site: Site, released: Release, bucket: Bucket) -> None:
    """Four chunks between two pieces cost less than a request; what is there already is not fetched again."""
    with contextlib.ExitStack() as opening:
        copy = opening.enter_context(opened(site, bucket))
        (record,) = copy.records()
        found = copy.open(record, opening)
        assert found is not None
        held, kib = found[0], 1 << 10
        assert held.bring is not None
        held.bring(held, [(0, 1), (64 * 6 * kib - 1, 1), (64 * 12 * kib, 5)])
        held.bring(held, [(64 * 3 * kib, 64 * 11 * kib)])
        held.bring(held, [(100, 64 * 12 * kib)])
        assert [(at // kib // 64, length // kib // 64) for _, at, length in bucket.asked] == [
            (0, 6),
            (12, 1),
            (6, 6),
            (13, 1),
        ]
        end = released.size - 10
        held.bring(held, [(end, 10)])
        stored = released.path.read_bytes()
        assert os.pread(held.descriptor, 64 * 14 * kib, 0) == stored[: 64 * 14 * kib]
        assert os.pread(held.descriptor, 99, end) == stored[end:]


def test_nothing_that_is_beside_a_release_stops_a_conversion(
    site: Site, released: Release, cold: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.store.attachments.atomic.create", refuse)
    convert(site, cold, reads=LAYERS_OF_ALL)


def test_tails_that_are_moved_and_fragments_that_are_made_again(site: Site, bucket: Bucket) -> None:
    lower, upper = files("a", 40), LayerBuilder().dir("b")
    for number in range(40):
        upper.file(f"b/{number:03}", noise(300 + number * 97, number))
    site.release("v1.0", lower, upper, LayerBuilder().whiteout("a/007"))
    sync(site.store, bucket)
    site.copy = lambda: opened(site, bucket)
    site.same_as_cold(upper, reads=[], synced=True)
    site.same_as_cold(lower, LayerBuilder().whiteout("a/007"), top(1), reads=[2], synced=True)


def test_the_mounted_store_comes_first(site: Site, released: Release, bucket: Bucket) -> None:
    other = new_store(site.folder / "empty")
    for store, wanted in ((site.store, False), (other, True)):
        with opened(site, bucket) as copy, StoredLayers(store, synced=True, copy=copy) as found:
            pack = found.open(released.packs[0], released.packs, xattrs=False, scratch=site.folder)
            assert pack is not None
            assert ("s3://" in pack.sources[0].name) is wanted
            assert found.has(released.packs[0])
            pack.close()


def test_a_store_and_a_bucket_together_have_a_layer(site: Site, bucket: Bucket) -> None:
    """One release hides what the other one shows: each piece comes from where it is, and has its checksum."""
    large = LayerBuilder().file("one", noise(50_000, 1)).file("two", noise(50_000, 2))
    other = Site(site.folder / "other", new_store(site.folder / "other-store"))
    other.folder.mkdir()
    other.release("v1.0", large, LayerBuilder().whiteout("two"))
    sync(other.store, bucket)
    key = site.release("v1.0", large, LayerBuilder().whiteout("one")).packs[0]
    with opened(site, bucket) as copy, StoredLayers(site.store, synced=True, copy=copy) as found:
        pack = found.open(key, [key], xattrs=False, scratch=site.folder, every=True)
        assert pack is not None
        assert ["s3://" in held.name for held in pack.sources] == [False, True]
        pieces = pack.pieces()
        assert sum(length for _, length, _ in pieces) > 90_000
        for piece in pieces:
            pack.read_pieces([piece], memoryview(bytearray(piece[1])))
        pack.close()
    assert bucket.asked


def flipped(released: Release) -> bytes:
    data, rng = bytearray(released.path.read_bytes()), random.Random(3)
    for at in range(rng.randrange(200), len(data), 200):
        data[at] ^= 4
    return bytes(data)


@pytest.mark.parametrize("what", ["vanished", "short", "wrong", "other size"])
def test_an_object_that_is_not_what_it_was(
    site: Site, released: Release, bucket: Bucket, cold: bytes, what: str
) -> None:
    good = released.path.read_bytes()
    changed = {"vanished": None, "short": good[:MIB], "wrong": flipped(released), "other size": good + b"x"}
    bucket.replace(released.file, changed[what])
    convert(site, cold, reads=LAYERS_OF_ALL)


@pytest.mark.parametrize("what", ["vanished", "short", "wrong"])
def test_an_object_that_changes_between_any_two_reads(
    site: Site, released: Release, bucket: Bucket, cold: bytes, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are no leases in a bucket: whoever deletes a release there takes it away from conversions."""
    monkeypatch.setattr(from_bucket, "_REQUEST", 8)
    monkeypatch.setattr(from_bucket, "_AT_ONCE", 1)
    good = released.path.read_bytes()
    changed = {"vanished": None, "short": b"", "wrong": flipped(released)}[what]
    convert(site, cold, reads=[2])
    count = len(bucket.asked)
    assert count >= 4
    for at in range(1, count + 1):
        bucket.asked.clear()
        bucket.before = {at: lambda: bucket.replace(released.file, changed)}
        convert(site, cold, reads=LAYERS_OF_ALL)
        bucket.replace(released.file, good)


def test_an_object_that_is_archived_leaves_the_others(
    site: Site, released: Release, bucket: Bucket, cold: bytes
) -> None:
    other = replace(released, version="v0.9", sha256="9" * 64, created="2020-01-01T00:00:00Z")
    for key in bucket.everything():
        name = key.removeprefix(bucket._prefix)
        if name.startswith("demo/.meta/v1.0/"):
            bucket.replace(name.replace("v1.0", "v0.9"), bucket.get(name))
    bucket.replace("demo/v0.9.json", other.as_bytes())
    bucket.replace(other.file, released.path.read_bytes())
    bucket.replace(released.file, released.path.read_bytes(), StorageClass="GLACIER")
    convert(site, cold, reads=[2])
    assert {key for key, _, _ in bucket.asked} == {released.file, other.file}


def test_answers_that_are_cut_short(
    site: Site, released: Release, bucket: Bucket, cold: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice is a broken connection, which is tried again; always is a source that fails."""
    real, count, most = bucket._get_range, 0, 2

    def cut(key: str, offset: int, length: int) -> bytes:
        nonlocal count
        count += 1
        return real(key, offset, length)[: length // 2 if count <= most else length]

    monkeypatch.setattr(bucket, "_get_range", cut)
    convert(site, cold, reads=[2])
    count, most = 0, 10_000
    convert(site, cold, reads=LAYERS_OF_ALL)


@pytest.mark.parametrize("key", [BESIDE, "demo/v1.0.json"])
@pytest.mark.parametrize(
    "content", [None, b"{}", b"\0" * 5000, b" " * (17 * MIB)], ids=["gone", "json", "zeros", "huge"]
)
def test_what_is_beside_an_object_is_not_what_it_was(
    site: Site, released: Release, bucket: Bucket, cold: bytes, key: str, content: bytes | None
) -> None:
    bucket.replace(key, content)
    convert(site, cold, reads=LAYERS_OF_ALL)


def test_a_record_with_the_name_of_another_release(
    site: Site, released: Release, bucket: Bucket, cold: bytes
) -> None:
    bucket.replace("demo/v2.0.json", bucket.get("demo/v1.0.json"))
    convert(site, cold, reads=[2])
    bucket.replace("demo/v1.0.json", None)
    convert(site, cold, reads=LAYERS_OF_ALL)


def test_external_releases_are_not_used(site: Site, released: Release, bucket: Bucket, cold: bytes) -> None:
    bucket.replace("demo/v1.0.json", replace(released, scan=EXTERNAL).as_bytes())
    convert(site, cold, reads=LAYERS_OF_ALL)


def test_where_signatures_are_required_only_signed_releases_are_used(
    site: Site, released: Release, bucket: Bucket, cold: bytes, tmp_path: Path
) -> None:
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    key = Ed25519PrivateKey.generate()
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    required = Required(keys=open_keys(str(public)), source=tmp_path)
    site.copy = lambda: opened(site, bucket, required=required)
    convert(site, cold, reads=LAYERS_OF_ALL)
    signatures.sign(site.store.layout, released, open_signer(str(private)))
    sync(site.store, bucket)
    convert(site, cold, reads=[2])


def test_a_bucket_that_cannot_be_reached(
    site: Site, released: Release, bucket: Bucket, cold: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given up once, with a warning, and not asked again."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    site.copy = lambda: BucketReleases(bucket.name, scratch=site.folder)
    with structlog.testing.capture_logs() as logs:
        convert(site, cold, reads=LAYERS_OF_ALL)
    warnings = [entry for entry in logs if entry["log_level"] == "warning"]
    assert [entry["bucket"] for entry in warnings if "bucket" in entry] == [bucket.name]


def test_a_network_that_goes_away(
    site: Site, released: Release, bucket: Bucket, cold: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        bucket._client = boto3.client("s3", endpoint_url="http://127.0.0.1:9")

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    real = bucket._client
    for name in ("size", "read"):
        bucket._client = real
        method = getattr(S3Bucket, name)

        def leaving(*args: Any, method: Any = method) -> Any:
            away()
            return method(bucket, *args)

        with monkeypatch.context() as patched:
            patched.setattr(bucket, name, leaving)
            convert(site, cold, reads=LAYERS_OF_ALL)
    bucket._client = real
    convert(site, cold, reads=[2])


def test_no_room_for_downloads(
    site: Site, released: Release, bucket: Bucket, cold: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Any) -> None:
        raise ToolError("not enough space")

    monkeypatch.setattr(from_bucket, "require_space", full)
    convert(site, cold, reads=LAYERS_OF_ALL)
    assert bucket.asked == []


def test_the_verb_takes_a_bucket_that_images_yaml_trusts(
    site: Site, released: Release, bucket: Bucket, tmp_path: Path
) -> None:
    write_layout(tmp_path / "image", [BASE, HIDING, top(2), SHELL], compression="gzip")
    config, result = tmp_path / "images.yaml", tmp_path / "result.sqsh"
    config.write_text("version: 1\nimages:\n  demo:\n    base: example.com/base:1\n")

    def run() -> subprocess.CompletedProcess[str]:
        verb = ["convert", f"oci:{tmp_path / 'image'}", "--output", result, "--converter", "native"]
        how = ["--block-size", "4K", "--store", bucket.name, "--config", config, "--platform", "linux/amd64"]
        places = {"SQSHPIPE_CACHE": str(tmp_path / "cache"), "SQSHPIPE_SCRATCH": str(tmp_path)}
        argv = [sys.executable, "-m", "pipeline", *map(str, [*verb, *how])]
        return subprocess.run(
            argv, env={**os.environ, **places}, capture_output=True, text=True, timeout=120, check=False
        )

    refused = run()
    assert refused.returncode == 2
    assert "trust_synced: true" in refused.stderr
    with config.open("a") as file:
        file.write("store: {root: /nowhere, trust_synced: true}\n")
    made = run()
    assert made.returncode == 0, made.stderr
    assert len(pack_cache(tmp_path / "cache").packs()) == 1, "only the changed layer is packed"
    cold = site.convert(BASE, HIDING, top(2), stored=False)
    assert result.read_bytes() == cold.path.read_bytes()
