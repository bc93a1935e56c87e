"""Directory listings: runs of names that share the metadata block of their inodes."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from pipeline.squashfs.metadata import MetadataReader, MetadataWriter
from pipeline.squashfs.superblock import METADATA_SIZE

_HEADER = struct.Struct("<III")
_ENTRY = struct.Struct("<HhHH")
_INDEX = struct.Struct("<III")
# What a listing knows of an inode: basic type, start of its metadata block, offset in that, inode number.
Reference = tuple[int, int, int, int]
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


class ListingWriter:
    """Writes the listing of one folder into the directory table.

    A run ends after 256 names, where the inodes continue in another metadata block, where an inode number is
    too far from the run's first, and where the listing itself passes into another metadata block: from there
    the index leads to it, so that a name in a large folder is found without reading all before it.
    """

    def __init__(self, table: MetadataWriter) -> None:
        self._table = table
        self.start = table.position
        self._indexed = 0
        self._size = 0
        self._index: list[bytes] = []
        self._run = bytearray()
        self._count = 0
        self._block = -1
        self._base = 0
        self._room = 0

    def add(self, names: Iterable[tuple[bytes, Reference]]) -> None:
        """Names, each greater than the one before, with their inodes."""
        run, pack = self._run, _ENTRY.pack
        current, base, room, count = self._block, self._base, self._room, self._count
        for name, (kind, block, offset, number) in names:
            delta = number - base
            if block != current or count == MAX_RUN or not -0x8000 <= delta <= 0x7FFF or len(run) >= room:
                self._count = count
                self._end_run()
                self._begin_run(name, block, number)
                current, base, room, count, delta = block, number, self._room, 0, 0
            run += pack(offset, delta, kind, len(name) - 1) + name
            count += 1
        self._count = count

    def finish(self) -> tuple[int, list[bytes]]:
        """The size of the listing in bytes, and its index entries as an extended folder inode holds them."""
        self._end_run()
        return self._size, self._index

    def _begin_run(self, name: bytes, block: int, number: int) -> None:
        begin = self.start[1] + self._size
        passed = begin // METADATA_SIZE
        self._room = (passed + 1) * METADATA_SIZE - begin  # until the listing passes into another block
        if passed > self._indexed:
            self._indexed = passed
            self._index.append(_INDEX.pack(self._size, self._table.position[0], len(name) - 1) + name)
        self._run += bytes(_HEADER.size)  # filled in when the run ends
        self._block, self._base = block, number

    def _end_run(self) -> None:
        if not self._count:
            return
        _HEADER.pack_into(self._run, 0, self._count - 1, self._block, self._base)
        self._table.write(bytes(self._run))
        self._size += len(self._run)
        self._run.clear()
        self._count = 0
