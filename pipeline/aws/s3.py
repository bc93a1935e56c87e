"""Object stores: releases under s3://bucket/prefix, with uploads that can be resumed.

Credentials, region and endpoint come from where boto3 looks for them (profile, environment, instance role,
AWS_ENDPOINT_URL).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import botocore.exceptions
from botocore.config import Config
from botocore.parsers import ResponseParserError

from pipeline.aws import errors
from pipeline.aws.parts import plan
from pipeline.aws.upload import Upload, WrongCopyError
from pipeline.errors import ConfigError, ToolError, VerificationError
from pipeline.progress import NO_TASK, Task
from pipeline.squashfs.ranges import Piece
from pipeline.store.sealed import SMALL, UnreadableError
from pipeline.store.sync_source import Sent
from pipeline.system.log import log

PART_BYTES = 64 << 20
_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
_PATIENCE = Config(connect_timeout=10, max_pool_connections=16)
_BROKEN = (
    botocore.exceptions.IncompleteReadError,
    botocore.exceptions.ReadTimeoutError,
    botocore.exceptions.ResponseStreamingError,
)
_THERE = frozenset({"412", "PreconditionFailed", "409", "ConditionalRequestConflict"})


class S3Bucket:
    """Objects under a prefix of a bucket; keys are relative to it. S3 wants `part_bytes` of 5 MiB or more."""

    def __init__(self, url: str, *, client: Any = None, part_bytes: int = PART_BYTES) -> None:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not url.startswith("s3://") or not bucket:
            raise ConfigError(f"{url!r} is not a bucket", hint="write s3://bucket/prefix")
        self.name = url.rstrip("/")
        self._bucket = bucket
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self._part_bytes = part_bytes
        self._client = client or errors.client("s3", _PATIENCE)

    def keys(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(key, size in bytes) of every object under `prefix`."""
        with self._translate_errors("listing"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            for page in pages:
                if page["IsTruncated"] and not page.get("NextContinuationToken"):
                    raise ValueError("a page of the listing names no next one and is not the last")
                for item in page.get("Contents", ()):
                    yield item["Key"].removeprefix(self._prefix), item["Size"]

    def get(self, key: str, *, limit: int = SMALL) -> bytes | None:
        """A small object's bytes; None when it does not exist.

        Raises UnreadableError when it has more than `limit` bytes: it may have grown since it was listed.
        """
        with self._translate_errors(f"reading {key}"):
            try:
                body = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)["Body"]
            except botocore.exceptions.ClientError as error:
                if _code(error) in _MISSING:
                    return None
                raise
            content = b""
            while len(content) <= limit and (more := body.read(limit + 1 - len(content))):
                content += more
            body.close()
        if len(content) > limit:
            raise UnreadableError(
                f"{self.name}/{key} is larger than {limit >> 20} MiB", hint="look who made it"
            )
        return content

    def put_new(self, key: str, content: bytes) -> bool:
        """Write a new object; False, and nothing is written, when it exists already."""
        with self._translate_errors(f"writing {key}"):
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
        """An object's size in bytes; None when it does not exist."""
        with self._translate_errors(f"looking for {key}"):
            try:
                answer = self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)
            except botocore.exceptions.ClientError as error:
                if _code(error) in _MISSING:
                    return None
                raise
        return int(answer["ContentLength"])

    def open_from(self, key: str, offset: int, length: int | None = None) -> BinaryIO:
        """Read an object from byte `offset` on; no more than `length` bytes of it."""
        with self._translate_errors(f"reading {key}"):
            size = self.size(key)
            if size is None:
                raise _missing(f"{self.name}/{key}")
            if offset >= size:
                return io.BytesIO()
            last = "" if length is None else offset + length - 1
            answer = self._client.get_object(
                Bucket=self._bucket, Key=self._prefix + key, Range=f"bytes={offset}-{last}"
            )
        return cast("BinaryIO", _Body(self, key, answer["Body"]))

    def read(self, key: str, offset: int, length: int) -> bytes:
        """These bytes of an object, fewer where it ends or the stream broke each of three times.

        VerificationError when the object does not exist or is refused, such as one that is archived.
        """
        data = b""
        with self._translate_errors(f"reading {key}"):
            for _ in range(3):
                data = self._get_range(key, offset, length)
                if len(data) == length:
                    break
        return data

    def _get_range(self, key: str, offset: int, length: int) -> bytes:
        try:
            answer = self._client.get_object(
                Bucket=self._bucket, Key=self._prefix + key, Range=f"bytes={offset}-{offset + length - 1}"
            )
        except botocore.exceptions.ClientError as error:
            if _code(error) in _MISSING:
                raise _missing(f"{self.name}/{key}") from error
            if _code(error) == "InvalidRange":  # it ends before
                return b""
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500:
                raise  # the service fails, not this object
            raise VerificationError(
                f"{self.name}/{key} cannot be read: {error}", hint="check the rights and the storage class"
            ) from error
        try:
            return bytes(answer["Body"].read(length))
        except _BROKEN:
            return b""

    def upload(
        self,
        key: str,
        path: Path,
        *,
        sha256: str,
        task: Task = NO_TASK,
        pieces: Sequence[Piece] = (),
        keys: Sequence[str] = (),
    ) -> Sent:
        """Upload a file in parts. Parts that an earlier attempt has uploaded are compared, not sent again.

        `pieces` say what the objects under `keys` have of it: that is copied there, and proven by a checksum
        of the whole object, or by reading it back where the service has none; if it is wrong, all is sent.
        The object appears only when all is there and the file's sha256 is the one given; else
        VerificationError.
        """
        with self._translate_errors(f"uploading {key}"):
            target = {"Bucket": self._bucket, "Key": self._prefix + key}
            for shared in (pieces, ()) if pieces else ((),):
                task.total(path.stat().st_size)
                parts = plan(path.stat().st_size, shared, keys, self._part_bytes)
                try:
                    return Upload(self._client, target, self._prefix, parts).run(path, sha256, task)
                except WrongCopyError as error:
                    log.warning("what was copied inside the bucket is not right, all is sent", why=str(error))
        raise AssertionError("what is sent alone is not copied")

    @contextmanager
    def _translate_errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            hint = "check the bucket's name, region and rights (s3:ListBucket, GetObject, PutObject)"
            if isinstance(error, botocore.exceptions.ClientError) and _code(error) == "NoSuchUpload":
                hint = "another sync has ended the same upload: run it again"
            raise errors.bad_bundle(error) or ToolError(
                f"{self.name}: {doing} failed: {error}", hint=hint
            ) from error
        except (ResponseParserError, LookupError, TypeError, ValueError, RecursionError) as error:
            # boto3 asks for the bucket's region at a redirect, and is redirected again
            raise ToolError(
                f"{self.name}: {doing} failed: the answer is not what S3 answers ({error})",
                hint="check AWS_ENDPOINT_URL, and what stands between this machine and the service",
            ) from error


class _Body(io.RawIOBase):
    """The bytes of one answer; what fails while they arrive is raised as S3Bucket raises it.

    boto3's own stream gives its caller, inside `with`, the stream below it, which does not notice a cut.
    """

    def __init__(self, bucket: S3Bucket, key: str, body: Any) -> None:
        self._bucket, self._key, self._body = bucket, key, body

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        with self._bucket._translate_errors(f"reading {self._key}"):  # noqa: SLF001 - the same module
            return bytes(self._body.read(None if size < 0 else size))

    def close(self) -> None:
        self._body.close()
        super().close()


def _missing(name: str) -> VerificationError:
    return VerificationError(f"{name} is missing, and a record names it", hint="sync from another copy")


def _code(error: botocore.exceptions.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
