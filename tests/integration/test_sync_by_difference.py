"""A version travels by its difference: between folders, to a server that speaks S3, and from there."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions
import pytest
from moto.server import ThreadedMotoServer

from pipeline.aws.parts import LEAST, Part, plan
from pipeline.aws.s3 import S3Bucket
from pipeline.errors import VerificationError
from pipeline.squashfs.ranges import Piece
from pipeline.store import fetching
from pipeline.store.layout import RANGES
from pipeline.store.sharing import ranges_of
from pipeline.store.store import Store
from pipeline.store.sync import sync
from tests.support.store.releases import new_store
from tests.support.store.versions import layer, release

MIB = 1 << 20


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """v1.0, and v1.1 to v1.3 with another top, middle and base layer."""
    folder = tmp_path_factory.mktemp("made")
    store = new_store(folder / "store")
    base, middle, top, new = layer("a", 14), layer("b", 12), layer("c", 2), layer("new", 1)
    release(store, "v1.0", base, middle, top, folder=folder)
    release(store, "v1.1", base, middle, new, folder=folder)
    release(store, "v1.2", base, new, top, folder=folder)
    release(store, "v1.3", new, middle, top, folder=folder)
    return store


@pytest.fixture
def target(tmp_path: Path) -> Store:
    return new_store(tmp_path / "target")


def changed(store: Store, version: str) -> int:
    """Bytes of packs that v1.0 lacks, and what is in no pack."""
    wanted, held = (ranges_of(store.layout, store.resolve(f"demo:{each}")) for each in (version, "v1.0"))
    assert wanted is not None
    assert held is not None
    common = {number for number, (key, _) in enumerate(wanted.packs) if key in held.keys}
    return wanted.size - sum(item.length for item in wanted.ranges if item.layer in common)


def same(one: Store, other: Store, version: str) -> bool:
    name = f"demo:{version}"
    return one.resolve(name).path.read_bytes() == other.resolve(name).path.read_bytes()


def flip(path: Path, at: int) -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    path.chmod(0o444)


@pytest.mark.parametrize("version", ["v1.1", "v1.2", "v1.3"], ids=["top", "middle", "base"])
def test_between_folders(made: Store, target: Store, version: str) -> None:
    first = sync(made, target, names=["demo:v1.0"])
    assert (first.bytes_copied, first.bytes_reused) == (made.resolve("demo:v1.0").size, 0)
    second = sync(made, target, names=[f"demo:{version}"])
    size = made.resolve(f"demo:{version}").size
    assert second.bytes_copied + second.bytes_reused == size
    assert second.bytes_copied <= changed(made, version) + size // 100
    assert same(made, target, version)


def test_versions_of_one_run_serve_each_other(made: Store, target: Store) -> None:
    report = sync(made, target)
    assert len(report.copied) == 4
    total = sum(made.resolve(f"demo:v1.{number}").size for number in range(4))
    assert report.bytes_copied < total // 2
    assert all(same(made, target, f"v1.{number}") for number in range(4))


def test_a_flipped_bit_at_the_target_does_not_spread(made: Store, target: Store) -> None:
    sync(made, target, names=["demo:v1.0"])
    flip(target.resolve("demo:v1.0").path, 3 * MIB)
    report = sync(made, target, names=["demo:v1.1"])
    assert report.copied == ["demo:v1.1"]
    assert same(made, target, "v1.1")


def test_ranges_at_the_source_that_lie_are_found(made: Store, target: Store, tmp_path: Path) -> None:
    """The source's writers say which bytes are the target's: what comes out is compared with the record."""
    source = Store(tmp_path / "copy")
    shutil.copytree(made.root, source.root, symlinks=True)
    sync(source, target, names=["demo:v1.0"])
    beside = source.layout.attachments("demo", "v1.1", "linux/amd64") / RANGES
    ranges = ranges_of(source.layout, source.resolve("demo:v1.1"))
    assert ranges is not None
    item = next(item for item in ranges.ranges if item.length > MIB)
    row = f"[{item.layer},{item.source},{item.target},{item.length}]".encode()
    lie = f"[{item.layer},{item.source + 1},{item.target},{item.length - 1}]".encode()
    text = beside.read_bytes()
    assert row in text
    beside.chmod(0o644)
    beside.write_bytes(text.replace(row, lie))
    record = source.layout.record("demo", "v1.1", "linux/amd64")
    old, new = (hashlib.sha256(each).hexdigest() for each in (text, text.replace(row, lie)))
    changed_record = record.read_text().replace(old, new)
    start = changed_record.rindex('"crc32": "')
    crc32 = zlib.crc32(changed_record[:start].encode())
    record.unlink()
    record.write_text(f'{changed_record[:start]}"crc32": "{crc32:08x}"{changed_record[start + 19 :]}')
    report = sync(source, target, names=["demo:v1.1"])
    assert report.copied == ["demo:v1.1"]
    assert same(made, target, "v1.1")


def test_what_cannot_be_read_at_the_target_comes_from_the_source(
    made: Store, target: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(made, target, names=["demo:v1.0"])

    def stale(*_: Any, **__: Any) -> bool:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(fetching, "copy_range", stale)
    report = sync(made, target, names=["demo:v1.1"])
    assert (report.bytes_copied, report.bytes_reused) == (made.resolve("demo:v1.1").size, 0)
    assert same(made, target, "v1.1")


def test_a_copy_that_was_cut_is_resumed(made: Store, target: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    sync(made, target, names=["demo:v1.0"])
    real = fetching._read

    def cut(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.store.sync.is_orphan", lambda _: True)
    reads: list[int] = []

    def second(*words: Any) -> None:
        reads.append(1)
        if len(reads) == 2:
            raise KeyboardInterrupt
        real(*words)

    monkeypatch.setattr(fetching, "_read", second)
    with pytest.raises(KeyboardInterrupt):
        sync(made, target, names=["demo:v1.3"])
    left = sum(path.stat().st_size for path in target.layout.blobs.glob(".tmp.*"))
    monkeypatch.setattr(fetching, "_read", real)
    report = sync(made, target, names=["demo:v1.3"])
    assert left + report.bytes_copied + report.bytes_reused == made.resolve("demo:v1.3").size
    assert same(made, target, "v1.3")


# S3


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3Bucket:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    name = f"b{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:20]}"
    boto3.client("s3").create_bucket(Bucket=name)
    return S3Bucket(f"s3://{name}/team/containers")


def content(bucket: S3Bucket, store: Store, version: str) -> bool:
    wanted = store.resolve(f"demo:{version}")
    return bucket.get(wanted.file, limit=1 << 30) == wanted.path.read_bytes()


class Calls:
    """Counts what a client is asked for, and the bytes that are sent."""

    def __init__(self, bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
        self.copied: list[int] = []
        self.sent: list[int] = []
        self.read: list[str] = []
        client = bucket._client
        part, copy, get = client.upload_part, client.upload_part_copy, client.get_object

        def upload_part(**words: Any) -> Any:
            self.sent.append(len(words["Body"]))
            return part(**words)

        def upload_part_copy(**words: Any) -> Any:
            self.copied.append(words["PartNumber"])
            return copy(**words)

        def get_object(**words: Any) -> Any:
            self.read.append(words["Key"])
            return get(**words)

        monkeypatch.setattr(client, "upload_part", upload_part)
        monkeypatch.setattr(client, "upload_part_copy", upload_part_copy)
        monkeypatch.setattr(client, "get_object", get_object)


@pytest.mark.parametrize("version", ["v1.1", "v1.2", "v1.3"], ids=["top", "middle", "base"])
def test_only_new_bytes_are_sent(
    made: Store, bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    first = sync(made, bucket, names=["demo:v1.0"])
    assert (first.bytes_copied, first.bytes_reused) == (made.resolve("demo:v1.0").size, 0)
    calls = Calls(bucket, monkeypatch)
    second = sync(made, bucket, names=[f"demo:{version}"])
    assert second.bytes_copied == sum(calls.sent)
    assert second.bytes_copied <= changed(made, version) + 16 * MIB
    assert second.bytes_copied + second.bytes_reused == made.resolve(f"demo:{version}").size
    assert calls.copied
    assert content(bucket, made, version)


def test_other_bytes_in_the_bucket_are_not_copied(
    made: Store, bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(made, bucket, names=["demo:v1.0"])
    old = made.resolve("demo:v1.0")
    rotten = bytearray(old.path.read_bytes())
    rotten[8 * MIB] ^= 1
    bucket._client.put_object(Bucket=bucket._bucket, Key=bucket._prefix + old.file, Body=bytes(rotten))
    calls = Calls(bucket, monkeypatch)
    report = sync(made, bucket, names=["demo:v1.1"])
    assert calls.copied, "it was tried"
    assert (report.bytes_copied, report.bytes_reused) == (made.resolve("demo:v1.1").size, 0)
    assert content(bucket, made, "v1.1")


def test_a_service_that_cannot_copy_gets_all(
    made: Store, bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(made, bucket, names=["demo:v1.0"])

    def refuse(**_: Any) -> Any:
        raise botocore.exceptions.ClientError({"Error": {"Code": "NotImplemented"}}, "UploadPartCopy")

    monkeypatch.setattr(bucket._client, "upload_part_copy", refuse)
    report = sync(made, bucket, names=["demo:v1.1"])
    assert report.bytes_copied == made.resolve("demo:v1.1").size
    assert content(bucket, made, "v1.1")


def test_a_cut_upload_is_resumed_with_the_same_plan(
    made: Store, bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(made, bucket, names=["demo:v1.0"])
    real = bucket._client.upload_part_copy
    monkeypatch.setattr(
        bucket._client, "upload_part_copy", lambda **_: (_ for _ in ()).throw(KeyboardInterrupt())
    )
    with pytest.raises(KeyboardInterrupt):
        sync(made, bucket, names=["demo:v1.1"])
    monkeypatch.setattr(bucket._client, "upload_part_copy", real)
    calls = Calls(bucket, monkeypatch)
    sync(made, bucket, names=["demo:v1.1"])
    assert len(calls.sent) < len(plan_of(bucket, made)), "the first part was there"
    assert 1 not in [number for number, _ in enumerate(calls.sent, 2)]
    assert content(bucket, made, "v1.1")


def plan_of(bucket: S3Bucket, made: Store) -> list[Part]:
    from pipeline.store.sharing import Holders
    from pipeline.store.sync import _in_bucket

    record = made.resolve("demo:v1.1")
    pieces, keys = _in_bucket(made.layout, record, bucket, Holders(made.layout))
    return plan(record.size, pieces, keys, 64 * MIB)


def test_an_upload_with_another_plan_is_begun_anew(
    made: Store, bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent in parts of other sizes, before v1.0 was there to copy from."""
    real = bucket._client.upload_part
    small = S3Bucket(bucket.name, part_bytes=LEAST)
    count: list[int] = []

    def cut(**words: Any) -> Any:
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return real(**words)

    monkeypatch.setattr(small._client, "upload_part", cut)
    with pytest.raises(KeyboardInterrupt):
        sync(made, small, names=["demo:v1.1"])
    sync(made, bucket, names=["demo:v1.0", "demo:v1.1"])
    assert content(bucket, made, "v1.1")
    left = bucket._client.list_multipart_uploads(Bucket=bucket._bucket)
    assert not left.get("Uploads")


def test_etags_that_are_no_md5_cost_time_alone(
    made: Store, bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under SSE-KMS: parts that cannot be compared are sent and copied again."""
    sync(made, bucket, names=["demo:v1.0"])
    real = bucket._client.upload_part_copy
    monkeypatch.setattr(
        bucket._client, "upload_part_copy", lambda **_: (_ for _ in ()).throw(KeyboardInterrupt())
    )
    with pytest.raises(KeyboardInterrupt):
        sync(made, bucket, names=["demo:v1.1"])
    monkeypatch.setattr(bucket._client, "upload_part_copy", real)
    monkeypatch.setattr("pipeline.aws.upload._same", lambda *_: None)
    sync(made, bucket, names=["demo:v1.1"])
    assert content(bucket, made, "v1.1")


class WithChecksums:
    """A service that keeps checksums of whole objects, which moto does not: what it adds is computed here."""

    def __init__(self, bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch, *, wrong: bool = False) -> None:
        client = bucket._client
        begin, complete, get = (
            client.create_multipart_upload,
            client.complete_multipart_upload,
            client.get_object,
        )
        self.completed = 0

        def create_multipart_upload(**words: Any) -> Any:
            asked = {key: words.pop(key) for key in ("ChecksumAlgorithm", "ChecksumType") if key in words}
            return {**begin(**words), **asked}

        def upload_part(real: Any = client.upload_part, **words: Any) -> Any:
            piece = words["Body"]
            if "ChecksumCRC32" in words:
                assert words.pop("ChecksumCRC32") == _crc32(piece)
            return real(**words)

        def complete_multipart_upload(**words: Any) -> Any:
            wanted, kind = words.pop("ChecksumCRC32", None), words.pop("ChecksumType", None)
            if wanted is None:
                return complete(**words)
            assert kind == "FULL_OBJECT"
            self.completed += 1
            answer = complete(**words)
            where = {"Bucket": words["Bucket"], "Key": words["Key"]}
            has = _crc32(get(**where)["Body"].read())
            if has != wanted or wrong:
                client.delete_object(**where)  # S3 makes no object, and the upload stays
                client.create_multipart_upload(**where)
                raise botocore.exceptions.ClientError(
                    {"Error": {"Code": "BadDigest"}}, "CompleteMultipartUpload"
                )
            return {**answer, "ChecksumCRC32": has, "ChecksumType": "FULL_OBJECT"}

        monkeypatch.setattr(client, "create_multipart_upload", create_multipart_upload)
        monkeypatch.setattr(client, "upload_part", upload_part)
        monkeypatch.setattr(client, "complete_multipart_upload", complete_multipart_upload)
        monkeypatch.setattr(client, "abort_multipart_upload", lambda **_: {})


def _crc32(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


def test_a_checksum_of_the_whole_object_spares_the_reading_back(
    made: Store, bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(made, bucket, names=["demo:v1.0"])
    service = WithChecksums(bucket, monkeypatch)
    calls = Calls(bucket, monkeypatch)
    report = sync(made, bucket, names=["demo:v1.1"])
    assert report.bytes_reused
    assert service.completed == 1
    assert not [key for key in calls.read if key.endswith(".sqsh")]
    assert content(bucket, made, "v1.1")


def test_without_such_a_checksum_the_object_is_read_back(
    made: Store, bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(made, bucket, names=["demo:v1.0"])
    calls = Calls(bucket, monkeypatch)

    def without(real: Any = bucket._client.create_multipart_upload, **words: Any) -> Any:
        if "ChecksumType" in words:
            raise botocore.exceptions.ClientError(
                {"Error": {"Code": "InvalidRequest"}}, "CreateMultipartUpload"
            )
        return real(**words)

    monkeypatch.setattr(bucket._client, "create_multipart_upload", without)
    sync(made, bucket, names=["demo:v1.1"])
    assert [key for key in calls.read if key.endswith(made.resolve("demo:v1.1").file)]


def test_from_a_bucket_only_what_differs_is_read(
    made: Store, bucket: S3Bucket, target: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(made, bucket)
    sync(bucket, target, names=["demo:v1.0"])
    bodies: list[int] = []
    real = S3Bucket.open_from

    def counting(self: S3Bucket, key: str, offset: int, length: int | None = None) -> Any:
        data = real(self, key, offset, length).read()
        bodies.append(len(data))
        return io.BytesIO(data)

    monkeypatch.setattr(S3Bucket, "open_from", counting)
    report = sync(bucket, target, names=["demo:v1.3"])
    assert sum(bodies) == report.bytes_copied <= changed(made, "v1.3") + 3 * MIB
    assert same(made, target, "v1.3")


def test_wrong_bytes_of_a_bucket_do_not_become_a_release(
    made: Store, bucket: S3Bucket, target: Store
) -> None:
    sync(made, bucket)
    sync(bucket, target, names=["demo:v1.0"])
    new = made.resolve("demo:v1.1")
    rotten = bytearray(new.path.read_bytes())
    rotten[-6000] ^= 1
    bucket._client.put_object(Bucket=bucket._bucket, Key=bucket._prefix + new.file, Body=bytes(rotten))
    with pytest.raises(VerificationError, match="arrived with sha256"):
        sync(bucket, target, names=["demo:v1.1"])
    assert target.release("demo", "v1.1") is None


# The plan of parts


def check(parts: list[Part], size: int) -> None:
    position = 0
    for part in parts:
        assert part.begin == position
        position += part.length
        assert part.length <= 5 << 30
    assert position == size
    assert all(part.length >= LEAST for part in parts[:-1])
    assert 1 <= len(parts) <= 10_000


@pytest.mark.parametrize("seed", range(60))
def test_any_plan_is_one_that_s3_takes(seed: int) -> None:
    import random

    rng = random.Random(seed)
    size = int(10 ** rng.uniform(0, 13))
    pieces: list[Piece] = []
    position = 0
    while position < size and len(pieces) < 5000:
        length = min(size - position, max(1, int(10 ** rng.uniform(0, 11))))
        held = rng.choice((None, 0, 1))
        pieces.append(Piece(held, rng.randrange(1 << 40), position, length))
        position += length
    if position < size:
        pieces.append(Piece(None, position, position, size - position))
    parts = plan(size, pieces, ["one", "two"], rng.choice((LEAST, 64 * MIB)))
    check(parts, size)
    for part in parts:
        if part.key is None:
            continue
        inside = [each for each in pieces if each.target <= part.begin < each.target + each.length]
        assert len(inside) == 1
        assert part.source - part.begin == inside[0].source - inside[0].target
        assert part.begin + part.length <= inside[0].target + inside[0].length


def test_many_short_copies_are_not_worth_it() -> None:
    pieces = [Piece(number % 2 or None, number * MIB, number * MIB, MIB) for number in range(2000)]
    assert {part.key for part in plan(2000 * MIB, pieces, ["", "one"], 64 * MIB)} == {None}


def test_a_terabyte_of_alternating_pieces_has_ten_thousand_parts_at_most() -> None:
    step = 20 * MIB
    pieces = [Piece(0 if number % 2 else None, 0, number * step, step) for number in range(50_000)]
    check(plan(50_000 * step, pieces, ["one"], 64 * MIB), 50_000 * step)


def test_no_bytes_are_one_part() -> None:
    assert plan(0, [], [], 64 * MIB) == [Part(0, 0)]
