"""Read and write the JSON files of a store so that damage is noticed, in one place.

The last key of a sealed file is "crc32": the CRC-32 of every byte before that key's opening quote, eight
lower-case hex digits. It detects damage; it is not a signature. Files of older versions have no such key.

Whatever is read from a store comes through `read_bytes` and `parse`: regular files of a bounded size, strict
UTF-8 and JSON. What does not pass is one error, `UnreadableError`, that names the file. Standard library
only.
"""

from __future__ import annotations

import binascii
import errno
import json
import re
from pathlib import Path
from typing import Any

from pipeline.errors import FormatError, PublishError
from pipeline.oci import strict_json
from pipeline.system import untrusted
from pipeline.text import escaped

SMALL = 16 << 20
"""Bytes that a record or an event may have."""
LARGE = 512 << 20
"""Bytes that a cache may have."""
KEY = "crc32"
_OPENING = b'"crc32": "'
_CLOSING = re.compile(rb'"crc32": "([0-9a-f]{8})"\s*\}\s*')
_SURROGATE = re.compile("[\ud800-\udfff]")
_RESTORE = "sqshpipe store rebuild says what can be done"
_WHAT = {
    errno.ELOOP: "it is a symlink, not a regular file",
    errno.ENXIO: "it is not a regular file",
    errno.ENODEV: "it is not a regular file",
}


class UnreadableError(PublishError):
    """A file of the store that cannot be read: damaged, of a newer schema, or no regular file."""


def damaged(path: str | Path, why: object) -> UnreadableError:
    """The error for a file whose content is not what it must be."""
    return UnreadableError(f"{escaped(str(path))} is damaged: {escaped(str(why))}", hint=_RESTORE)


def checksum(content: bytes) -> str:
    """CRC-32 as eight lower-case hex digits."""
    return f"{binascii.crc32(content):08x}"


def seal(text: str) -> bytes:
    """The file for `text`, one JSON object: the same object with its checksum as last key.

    A lone surrogate, which represents a byte that is not UTF-8, becomes its escape as plain characters: UTF-8
    cannot hold it, and the strict reader refuses it.
    """
    if not text.isascii():
        text = _SURROGATE.sub(lambda found: f"\\\\u{ord(found[0]):04x}", text)
    body = text.rstrip().removesuffix("}")
    before = body.rstrip().encode() + (b",\n  " if body.endswith("\n") else b", ")
    end = b"\n}\n" if body.endswith("\n") else b"}\n"
    return before + _OPENING + checksum(before).encode() + b'"' + end


def is_sealed(raw: bytes) -> bool:
    """Whether `raw` ends with a checksum, and it is right."""
    start = raw.rfind(_OPENING)
    found = _CLOSING.fullmatch(raw, start) if start >= 0 else None
    return found is not None and int(found[1], 16) == binascii.crc32(memoryview(raw)[:start])


def read_bytes(path: str | Path, *, limit: int = SMALL) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises FileNotFoundError and NotADirectoryError when it is missing, UnreadableError when it cannot be
    read.
    """
    try:
        try:
            return untrusted.read_regular(path, limit=limit)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            return untrusted.read_regular(path, limit=limit)  # a stale handle is opened again
    except (FileNotFoundError, NotADirectoryError):
        raise
    except untrusted.NotRegularError as error:
        raise damaged(path, error.strerror) from error
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise UnreadableError(
                f"{escaped(str(path))} cannot be read: {error.strerror}",
                hint="ask the store's owner for the right to read it",
            ) from error
        why = _WHAT.get(error.errno or 0, error.strerror)
        raise UnreadableError(f"{escaped(str(path))} cannot be read: {why}", hint=_RESTORE) from error


def parse(raw: bytes, path: str | Path) -> dict[str, Any]:
    """`raw` as a JSON object whose checksum, if there, is right. Raises UnreadableError naming `path`."""
    try:
        data = strict_json.parse_object(raw, max_size=SMALL, what="it")
    except FormatError as error:
        raise damaged(path, error.message) from error
    if KEY in data and not is_sealed(raw):
        raise damaged(path, "its checksum is wrong")
    return data


def parse_cache(raw: bytes) -> dict[str, Any] | None:
    """`raw` as a JSON object whose checksum is there and right; None when it is not."""
    if not is_sealed(raw):
        return None
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def check_schema(data: dict[str, Any], path: str | Path, *, newest: int) -> dict[str, Any]:
    """`data` unchanged. Raises UnreadableError for `path` when its schema is invalid or above `newest`."""
    schema = data.get("schema", 0)
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 0:
        raise damaged(path, f"schema {schema!r}")
    if schema > newest:
        raise UnreadableError(
            f"{escaped(str(path))} has schema {schema}; this sqshpipe knows up to {newest}",
            hint="a newer sqshpipe wrote it: upgrade this one",
        )
    return data
