"""Copies to an object store and back, against a server that speaks S3."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions
import pytest
from moto.server import ThreadedMotoServer

from pipeline.attest import signing
from pipeline.aws.s3 import S3Bucket
from pipeline.errors import ConfigError, PublishError, ToolError, VerificationError
from pipeline.store import signatures
from pipeline.store.store import Store
from pipeline.store.sync import compare, sync
from tests.support.store.releases import new_store, publish

PART = 5 << 20


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)


@pytest.fixture
def bucket(aws: None, tmp_path: Path) -> S3Bucket:
    name = f"b{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:20]}"
    boto3.client("s3").create_bucket(Bucket=name)
    return S3Bucket(f"s3://{name}/team/containers", part_bytes=PART)


@pytest.fixture
def source(tmp_path: Path) -> Store:
    store = new_store(tmp_path / "source")
    publish(store, "v1.0")
    publish(store, "v1.1", bytes(range(256)) * 60000)  # three parts
    publish(store, "v1.0", b"arm", platform="linux/arm64")
    return store


def test_there_and_back(source: Store, bucket: S3Bucket, tmp_path: Path) -> None:
    attached = source.layout.attachments("demo", "v1.1", "linux/amd64")
    attached.mkdir()
    (attached / "sbom.json").write_text("{}")
    assert len(sync(source, bucket).copied) == 3
    again = sync(source, bucket)
    assert (again.copied, again.present, again.bytes_copied) == ([], 3, 0)
    back = new_store(tmp_path / "back")
    sync(bucket, back)
    assert back.resolve("demo").path.read_bytes() == source.resolve("demo").path.read_bytes()
    assert back.resolve("demo:v1.0", "linux/arm64").path.read_bytes() == b"arm"
    assert (back.layout.attachments("demo", "v1.1", "linux/amd64") / "sbom.json").read_text() == "{}"


def test_an_upload_that_was_cut_is_resumed(
    source: Store, bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = bucket._client
    sent: list[int] = []
    real = client.upload_part

    def cut(**arguments: Any) -> Any:
        sent.append(arguments["PartNumber"])
        if sent == [1, 2]:
            raise KeyboardInterrupt
        return real(**arguments)

    monkeypatch.setattr(client, "upload_part", cut)
    with pytest.raises(KeyboardInterrupt):
        sync(source, bucket, names=["demo:v1.1"])
    assert bucket.get("demo/v1.1.json") is None
    sent.clear()

    def count(**arguments: Any) -> Any:
        sent.append(arguments["PartNumber"])
        return real(**arguments)

    monkeypatch.setattr(client, "upload_part", count)
    sync(source, bucket, names=["demo:v1.1"])
    assert sent == [2, 3]
    assert bucket.size(source.resolve("demo:v1.1").file) == 256 * 60000


def test_a_download_that_was_cut_is_resumed(
    source: Store, bucket: S3Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(source, bucket)
    back = new_store(tmp_path / "back")
    back.prepare()
    release = source.resolve("demo:v1.1")
    left = back.layout.blobs / f".tmp.000000000000.1.1.1.000000000000.{release.sha256}.sync"
    left.write_bytes(release.path.read_bytes()[: 1 << 20])
    monkeypatch.setattr("pipeline.store.sync.is_orphan", lambda _: True)
    report = sync(bucket, back, names=["demo:v1.1"])
    assert report.bytes_copied == release.size - (1 << 20)
    assert back.resolve("demo:v1.1").path.read_bytes() == release.path.read_bytes()


def test_damage_on_either_side_is_found(source: Store, bucket: S3Bucket, tmp_path: Path) -> None:
    blob = source.resolve("demo:v1.0").path
    blob.chmod(0o644)
    blob.write_bytes(b"rot!")
    with pytest.raises(VerificationError, match="its record says"):
        sync(source, bucket, names=["demo:v1.0"])
    assert bucket.get("demo/v1.0.json") is None
    blob.write_bytes(b"v1.0")
    sync(source, bucket)
    bucket._client.put_object(
        Bucket=bucket._bucket, Key=bucket._prefix + source.resolve("demo:v1.0").file, Body=b"rot!"
    )
    back = new_store(tmp_path / "back")
    with pytest.raises(VerificationError, match="arrived with sha256"):
        sync(bucket, back, names=["demo:v1.0"])
    assert back.release("demo", "v1.0") is None


def test_a_version_with_other_content_is_refused(source: Store, bucket: S3Bucket, tmp_path: Path) -> None:
    sync(source, bucket)
    other = new_store(tmp_path / "other")
    publish(other, "v1.0", b"other content")
    with pytest.raises(PublishError, match="other content"):
        sync(other, bucket)


def test_half_a_record_in_the_bucket_stops_its_release_alone(source: Store, bucket: S3Bucket) -> None:
    half = source.layout.record("demo", "v1.0", "linux/amd64").read_bytes()[:99]
    bucket.put_new("demo/v1.0.json", half)
    for report in (compare(source, bucket), sync(source, bucket)):
        (sentence,) = report.broken
        assert sentence.startswith(f"{bucket.name}/demo/v1.0.json is damaged")
        assert len(report.copied) == 2
    assert bucket.get("demo/v1.0.json") == half


def test_an_upload_that_another_sync_ends_is_named_so(
    source: Store, bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that bring the same release share its upload, and the first ends it."""
    client, part = bucket._client, bucket._client.upload_part

    def late(**words: Any) -> Any:
        monkeypatch.setattr(client, "upload_part", part)
        sync(source, bucket, names=["demo:v1.1"])
        raise botocore.exceptions.ClientError({"Error": {"Code": "NoSuchUpload"}}, "UploadPart")

    monkeypatch.setattr(client, "upload_part", late)
    with pytest.raises(ToolError, match="NoSuchUpload") as caught:
        sync(source, bucket, names=["demo:v1.1"])
    assert "run it again" in caught.value.hint
    assert sync(source, bucket, names=["demo:v1.1"]).present == 1


def test_what_cannot_be_reached(source: Store, aws: None) -> None:
    with pytest.raises(ToolError, match="no-such-bucket"):
        sync(source, S3Bucket("s3://no-such-bucket/x"))
    with pytest.raises(ConfigError, match="is not a bucket"):
        S3Bucket("s3://")
    with pytest.raises(ConfigError, match="one side"):
        sync(S3Bucket("s3://one/x"), S3Bucket("s3://two/x"))


def test_a_key_that_never_leaves_kms(source: Store, aws: None) -> None:
    kms = boto3.client("kms")
    key = kms.create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["KeyId"]
    where = f"awskms:{key}"
    release = source.resolve("demo:v1.0")
    path = signatures.sign(source.layout, release, signing.open_signer(where))
    assert signatures.verify(source.layout, release, [signing.open_key(where)]) == path
    with pytest.raises(ToolError, match="KMS refused"):
        signing.open_key("awskms:00000000-0000-0000-0000-000000000000")
    wrong = kms.create_key(KeySpec="RSA_2048", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["KeyId"]
    with pytest.raises(ConfigError, match="cannot sign with"):
        signing.open_signer(f"awskms:{wrong}")
