"""Directory listings: runs of names that share the metadata block of their inodes."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from pipeline.squashfs.metadata import MetadataReader

_HEADER = struct.Struct("<III")
_ENTRY = struct.Struct("<HhHH")
MAX_RUN = 256  # names under one header
MAX_NAME = 255  # the kernel's limit; the format's own is 256


def read_listing(
    table: MetadataReader, start: int, offset: int, size: int
) -> Iterator[tuple[bytes, int, int]]:
    """The (name, inode reference, inode number) of each name in a listing of `size` bytes, in stored order.

    FormatError unless names are whole, sorted by bytes, and free of "/", NUL, "." and "..".
    """
    if not size:
        return
    data = table.read(start, offset, size)
    at = 0
    previous = b""
    while at < size:
        if at + _HEADER.size > size:
            raise table.damaged("a listing ends inside a header")
        count, block, base = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        if count >= MAX_RUN:
            raise table.damaged(f"a listing's run of {count + 1} names")
        for _ in range(count + 1):
            if at + _ENTRY.size > size:
                raise table.damaged("a listing ends inside an entry")
            inode_offset, delta, _, length = _ENTRY.unpack_from(data, at)
            at += _ENTRY.size
            name = data[at : at + length + 1]
            at += length + 1
            if at > size or length > MAX_NAME:
                raise table.damaged("a listing ends inside a name")
            if name <= previous or b"/" in name or b"\0" in name or name in (b".", b".."):
                raise table.damaged(f"the name {name!r} after {previous!r} in a listing")
            previous = name
            yield name, block << 16 | inode_offset, base + delta
