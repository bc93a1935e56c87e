"""One 512-byte block of a tar: the fields of ustar, GNU, star and v7 headers (POSIX ustar; GNU tar manual).

Everything here runs once for each member, of which a layer may have a million: no work goes byte by byte.
"""

from __future__ import annotations

import re
import struct
from functools import lru_cache
from typing import NamedTuple

from isal import isal_zlib

from pipeline.errors import FormatError

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)

_FIELDS = struct.Struct("100s8s8s8s12s12s8sc100s8s32x32x8s8s155s12x")
_OCTAL = re.compile(rb"[0-7]{1,8}")
_ADLER_PRIME = 65521
_POSIX = b"ustar\x0000"
_GNU = b"ustar  \0"
_STAR_END = b"tar\0"
MAX_NUMBER = (1 << 63) - 1


class Header(NamedTuple):
    """The raw fields of a header block, numbers as they stand (see `number`); `name` has its prefix."""

    name: bytes
    mode: bytes
    uid: bytes
    gid: bytes
    size: bytes
    mtime: bytes
    kind: bytes
    target: bytes
    major: bytes
    minor: bytes


def parse_header(block: bytes) -> Header:
    """Take a header block apart. Raises FormatError when its checksum is wrong."""
    name, mode, uid, gid, size, mtime, checksum, kind, target, magic, major, minor, prefix = _FIELDS.unpack(
        block
    )
    _check(block, checksum)
    name = name.partition(b"\0")[0]
    if magic[:6] == b"ustar\0":
        if magic == _POSIX:
            if prefix[0]:
                if block[508:] == _STAR_END:
                    prefix = prefix[:131]
                name = prefix.partition(b"\0")[0] + b"/" + name
        elif prefix[0]:
            raise FormatError("a tar header has a version of ustar that nobody knows")
    elif magic != _GNU:
        major = minor = b"\0"
    if kind == b"S" and magic != _GNU:
        raise FormatError("a tar has a sparse file of GNU's kind that is not in GNU's format")
    return Header(name, mode, uid, gid, size, mtime, kind, target.partition(b"\0")[0], major, minor)


def _check(block: bytes, field: bytes) -> None:
    """Compare the checksum: the sum of all bytes, the field itself counted as spaces.

    adler32 keeps 1 + sum modulo 65521 in its lower half, a sum at the speed of C; ancient tars that summed
    signed bytes take the slow way.
    """
    digits = field.strip(b" \0")
    stored = int(digits, 8) if _OCTAL.fullmatch(digits) else -1
    low = (isal_zlib.adler32(block) & 0xFFFF) - (isal_zlib.adler32(field) & 0xFFFF) + 256
    if (low - stored) % _ADLER_PRIME == 0 and 0 <= stored <= BLOCK * 255:
        return
    rest = block[:148] + block[156:]
    if sum(rest) - 256 * sum(byte > 127 for byte in rest) + 256 != stored:
        raise FormatError("this is not a tar, or a header in it is damaged: its checksum is wrong")


@lru_cache(maxsize=8192)
def number(field: bytes) -> int:
    """A header's number: octal digits among spaces and NULs, or base-256 when its top bit is set.

    Base-256 numbers may be negative; who must not have that checks it. Raises FormatError.
    """
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        if field[0] & 0x40:
            value -= 1 << (8 * len(field) - 1)
        if not -MAX_NUMBER <= value <= MAX_NUMBER:
            raise FormatError("a tar header holds a number beyond 64 bits")
        return value
    digits = field.lstrip(b" \0").partition(b"\0")[0].strip(b" ")
    if not digits:
        return 0
    if not digits.isdigit():
        raise FormatError(f"a tar header holds {field!r} where a number belongs")
    try:
        return int(digits, 8)
    except ValueError:
        raise FormatError(f"a tar header holds {field!r} where an octal number belongs") from None


def natural(field: bytes, what: str) -> int:
    """`number`, refused below zero."""
    value = number(field)
    if value < 0:
        raise FormatError(f"a tar header gives {what} as {value}")
    return value
