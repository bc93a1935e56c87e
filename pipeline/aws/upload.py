"""One multipart upload: existing parts are compared, others are sent or copied; the whole is verified."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import botocore.exceptions
from isal import isal_zlib

from pipeline.aws.parts import Part
from pipeline.errors import VerificationError
from pipeline.progress import Task
from pipeline.store.sync_source import Sent

_PIECE = 4 << 20
_FULL = "FULL_OBJECT"
_NO_CHECKSUM = frozenset({"InvalidRequest", "InvalidArgument", "NotImplemented", "XNotImplemented"})
_WRONG = frozenset({"BadDigest", "InvalidRequest", "InvalidPart"})


class WrongCopyError(Exception):
    """What the service copied is not what the file has, or it cannot copy: all must be sent."""


class _Checked(NamedTuple):
    """What a part of the file is: its CRC-32 and its MD5."""

    crc32: int
    md5: str


class Upload:
    """Brings one file to the object `target` ({"Bucket", "Key"}) in `parts`; keys in them are below `prefix`.

    A boto3 client is given; its errors are raised as they are.
    """

    def __init__(self, client: Any, target: Mapping[str, str], prefix: str, parts: Sequence[Part]) -> None:
        self._client = client
        self._target = dict(target)
        self._prefix = prefix
        self._parts = parts
        self._copies = any(part.key is not None for part in parts)
        self._crc32 = 0  # of the whole file
        self._sha256 = hashlib.sha256()
        self._whole = False  # whether the service takes a checksum of the whole object

    def run(self, path: Path, sha256: str, task: Task) -> Sent:
        """Send and copy what is missing and complete the object.

        Raises VerificationError when the file has another sha256, WrongCopyError when the object has.
        """
        upload, there = self._resumed(sha256)
        named = {**self._target, "UploadId": upload}
        sent = reused = 0
        done = []
        with path.open("rb", buffering=0) as file:
            for number, part in enumerate(self._parts, 1):
                piece = None if part.key is not None else _read_fully(file.fileno(), part)
                checked = self._check(file.fileno(), part, piece)
                etag = _same(there.get(number), part, checked)
                if etag is None:
                    etag = self._bring(named, number, part, piece, checked)
                    sent += len(piece or b"")
                reused += part.length if part.key is not None else 0
                done.append({"PartNumber": number, "ETag": etag})
                task.advance(part.length)
        if self._sha256.hexdigest() != sha256:
            self._client.abort_multipart_upload(**named)
            raise VerificationError(
                f"{path} has sha256 {self._sha256.hexdigest()}, its record says {sha256}",
                hint="run sqshpipe store scrub at the source",
            )
        if not self._complete(named, done) and self._copies:
            self._read_back(sha256)
        return Sent(sent=sent, reused=reused)

    def _resumed(self, sha256: str) -> tuple[str, Mapping[int, Mapping[str, Any]]]:
        """An unfinished upload with the same plan of parts and what of it is there; else a new one."""
        key = self._target["Key"]
        answer = self._client.list_multipart_uploads(Bucket=self._target["Bucket"], Prefix=key)
        uploads = [item for item in answer.get("Uploads", ()) if item["Key"] == key]
        if uploads:
            upload = str(uploads[-1]["UploadId"])
            there = self._there(upload)
            if all(
                number <= len(self._parts) and self._parts[number - 1].length == part["Size"]
                for number, part in there.items()
            ):
                self._whole = uploads[-1].get("ChecksumType") == _FULL
                return upload, there
            self._client.abort_multipart_upload(**self._target, UploadId=upload)
        return self._begin({"sha256": sha256}), {}

    def _there(self, upload: str) -> dict[int, Mapping[str, Any]]:
        pages = self._client.get_paginator("list_parts").paginate(**self._target, UploadId=upload)
        return {part["PartNumber"]: part for page in pages for part in page.get("Parts", ())}

    def _begin(self, metadata: Mapping[str, str]) -> str:
        target = {**self._target, "Metadata": metadata}
        if self._copies:
            try:
                answer = self._client.create_multipart_upload(
                    **target, ChecksumAlgorithm="CRC32", ChecksumType=_FULL
                )
            except botocore.exceptions.ClientError as error:
                if _code(error) not in _NO_CHECKSUM:
                    raise
            else:
                self._whole = answer.get("ChecksumType") == _FULL
                return str(answer["UploadId"])
        return str(self._client.create_multipart_upload(**target)["UploadId"])

    def _check(self, file: int, part: Part, piece: bytes | None) -> _Checked:
        """Read the part, from the file if not in memory, into the checksums of the whole and its own."""
        md5, crc32 = hashlib.md5(usedforsecurity=False), 0
        at, end = part.begin, part.begin + part.length
        while at < end:
            data = piece if piece is not None else os.pread(file, min(_PIECE, end - at), at)
            if not data:
                break  # the file was cut: its sha256 will differ
            md5.update(data)
            crc32 = isal_zlib.crc32(data, crc32)
            self._crc32 = isal_zlib.crc32(data, self._crc32)
            self._sha256.update(data)
            at += len(data)
        return _Checked(crc32, md5.hexdigest())

    def _bring(
        self, named: Mapping[str, str], number: int, part: Part, piece: bytes | None, checked: _Checked
    ) -> str:
        where = {**named, "PartNumber": number}
        if piece is not None:
            checksum = {"ChecksumCRC32": _base64(checked.crc32)} if self._whole else {}
            return str(self._client.upload_part(**where, Body=piece, **checksum)["ETag"])
        try:
            answer = self._client.upload_part_copy(
                **where,
                CopySource={"Bucket": self._target["Bucket"], "Key": self._prefix + str(part.key)},
                CopySourceRange=f"bytes={part.source}-{part.source + part.length - 1}",
            )
        except botocore.exceptions.ClientError as error:
            self._client.abort_multipart_upload(**named)
            raise WrongCopyError(f"{part.key} cannot be copied from: {error}") from error
        return str(answer["CopyPartResult"]["ETag"])

    def _complete(self, named: Mapping[str, str], done: Sequence[Mapping[str, Any]]) -> bool:
        """Make the object; True when the service has compared the checksum of the whole."""
        wanted = _base64(self._crc32)
        whole = {"ChecksumCRC32": wanted, "ChecksumType": _FULL} if self._whole else {}
        try:
            answer = self._client.complete_multipart_upload(**named, MultipartUpload={"Parts": done}, **whole)
        except botocore.exceptions.ClientError as error:
            if not whole or _code(error) not in _WRONG:
                raise
            self._client.abort_multipart_upload(**named)
            raise WrongCopyError(f"the whole object is refused: {error}") from error
        return bool(whole) and answer.get("ChecksumType") == _FULL and answer.get("ChecksumCRC32") == wanted

    def _read_back(self, sha256: str) -> None:
        digest = hashlib.sha256()
        body = self._client.get_object(**self._target)["Body"]
        while data := body.read(_PIECE):
            digest.update(data)
        if digest.hexdigest() != sha256:
            self._client.delete_object(**self._target)
            raise WrongCopyError(f"the object has sha256 {digest.hexdigest()}, not {sha256}")


def _same(there: Mapping[str, Any] | None, part: Part, checked: _Checked) -> str | None:
    """The ETag of an uploaded part with the same bytes. Under SSE-KMS an ETag is not an MD5."""
    if there is None or there["Size"] != part.length:
        return None
    etag, crc32 = str(there["ETag"]), there.get("ChecksumCRC32")
    return etag if etag == f'"{checked.md5}"' or crc32 == _base64(checked.crc32) else None


def _read_fully(file: int, part: Part) -> bytes:
    piece = b""
    while len(piece) < part.length and (
        more := os.pread(file, part.length - len(piece), part.begin + len(piece))
    ):
        piece += more
    return piece


def _base64(crc32: int) -> str:
    return base64.b64encode(crc32.to_bytes(4, "big")).decode()


def _code(error: botocore.exceptions.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
