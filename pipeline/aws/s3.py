"""The edge to object stores: releases under s3://bucket/prefix, uploads that are gone on from where they
were cut.

Credentials, region and endpoint come from where boto3 looks for them (profile, environment, instance role,
AWS_ENDPOINT_URL).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import botocore.exceptions

from pipeline.aws import errors
from pipeline.errors import ConfigError, ToolError, VerificationError
from pipeline.progress import SILENT, Meter

PART_BYTES = 64 << 20
_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
_THERE = frozenset({"412", "PreconditionFailed", "409", "ConditionalRequestConflict"})


class S3Bucket:
    """Objects under a prefix of a bucket; keys are relative to the prefix. `part_bytes` is at least 5 MiB
    in S3.
    """

    def __init__(self, url: str, *, client: Any = None, part_bytes: int = PART_BYTES) -> None:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not url.startswith("s3://") or not bucket:
            raise ConfigError(f"{url!r} is no bucket", hint="write s3://bucket/prefix")
        self.name = url.rstrip("/")
        self._bucket = bucket
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self._part_bytes = part_bytes
        self._client = client or errors.client("s3")

    def keys(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(key, size in bytes) of every object under `prefix`."""
        with self._told("listing"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            for page in pages:
                for item in page.get("Contents", ()):
                    yield item["Key"].removeprefix(self._prefix), item["Size"]

    def get(self, key: str) -> bytes | None:
        """A small object's bytes; None when there is none."""
        with self._told(f"reading {key}"):
            try:
                return bytes(
                    self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)["Body"].read()
                )
            except botocore.exceptions.ClientError as error:
                if _code(error) in _MISSING:
                    return None
                raise

    def put_new(self, key: str, content: bytes) -> bool:
        """Write an object that must not be there; False when it is."""
        with self._told(f"writing {key}"):
            try:
                self._client.put_object(
                    Bucket=self._bucket, Key=self._prefix + key, Body=content, IfNoneMatch="*"
                )
            except botocore.exceptions.ClientError as error:
                if _code(error) in _THERE:
                    return False
                raise
        return True

    def size(self, key: str) -> int | None:
        """An object's size in bytes; None when there is none."""
        with self._told(f"looking for {key}"):
            try:
                answer = self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)
            except botocore.exceptions.ClientError as error:
                if _code(error) in _MISSING:
                    return None
                raise
        return int(answer["ContentLength"])

    def open_from(self, key: str, offset: int) -> BinaryIO:
        """Read an object from byte `offset` on."""
        with self._told(f"reading {key}"):
            size = self.size(key)
            if size is None:
                raise VerificationError(
                    f"{self.name}/{key} is missing, and a record names it", hint="sync from another copy"
                )
            if offset >= size:
                import io

                return io.BytesIO()
            answer = self._client.get_object(
                Bucket=self._bucket, Key=self._prefix + key, Range=f"bytes={offset}-"
            )
        return cast("BinaryIO", answer["Body"])

    def upload(self, key: str, path: Path, *, sha256: str, meter: Meter = SILENT) -> None:
        """Bring a file there in parts; parts that an earlier attempt brought are compared, not sent again.

        The object appears only when all is there and the file's sha256 is the one given; else
        VerificationError.
        """
        with self._told(f"uploading {key}"):
            upload = self._unfinished(key) or self._begin(key, sha256)
            there = self._parts(key, upload)
            digest = hashlib.sha256()
            parts = []
            meter.total(path.stat().st_size)
            with path.open("rb", buffering=0) as file:
                number = 1
                while piece := _read_fully(file, self._part_bytes):
                    digest.update(piece)
                    etag = self._part(key, upload, number, piece, there)
                    parts.append({"PartNumber": number, "ETag": etag})
                    meter.advance(len(piece))
                    number += 1
            target = {"Bucket": self._bucket, "Key": self._prefix + key, "UploadId": upload}
            if digest.hexdigest() != sha256:
                self._client.abort_multipart_upload(**target)
                raise VerificationError(
                    f"{path} has sha256 {digest.hexdigest()}, its record says {sha256}",
                    hint="run sqshpipe store scrub at the source",
                )
            self._client.complete_multipart_upload(**target, MultipartUpload={"Parts": parts})

    def _unfinished(self, key: str) -> str | None:
        answer = self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=self._prefix + key)
        uploads = [item for item in answer.get("Uploads", ()) if item["Key"] == self._prefix + key]
        return str(uploads[-1]["UploadId"]) if uploads else None

    def _begin(self, key: str, sha256: str) -> str:
        answer = self._client.create_multipart_upload(
            Bucket=self._bucket, Key=self._prefix + key, Metadata={"sha256": sha256}
        )
        return str(answer["UploadId"])

    def _parts(self, key: str, upload: str) -> dict[int, tuple[str, int]]:
        pages = self._client.get_paginator("list_parts").paginate(
            Bucket=self._bucket, Key=self._prefix + key, UploadId=upload
        )
        return {
            part["PartNumber"]: (part["ETag"], part["Size"])
            for page in pages
            for part in page.get("Parts", ())
        }

    def _part(
        self, key: str, upload: str, number: int, piece: bytes, there: dict[int, tuple[str, int]]
    ) -> str:
        etag = f'"{hashlib.md5(piece, usedforsecurity=False).hexdigest()}"'
        if there.get(number) == (etag, len(piece)):
            return etag
        answer = self._client.upload_part(
            Bucket=self._bucket, Key=self._prefix + key, UploadId=upload, PartNumber=number, Body=piece
        )
        return str(answer["ETag"])

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            raise ToolError(
                f"{self.name}: {doing} failed: {error}",
                hint="check the bucket's name, region and rights (s3:ListBucket, GetObject, PutObject)",
            ) from error


def _read_fully(file: Any, size: int) -> bytes:
    piece = b""
    while len(piece) < size and (more := file.read(size - len(piece))):
        piece += more
    return piece


def _code(error: botocore.exceptions.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
