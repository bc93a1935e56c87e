"""Extended attributes: sets of name and value, shared by the inodes that have the same set."""

from __future__ import annotations

import struct

from pipeline.errors import FormatError
from pipeline.squashfs.codecs import Compress, Expand
from pipeline.squashfs.inode import NO_XATTRS
from pipeline.squashfs.metadata import MetadataReader, MetadataWriter, pointers, read_at, read_indexed
from pipeline.squashfs.superblock import ABSENT, METADATA_SIZE, Superblock

Xattrs = tuple[tuple[bytes, bytes], ...]

_PREFIXES = (b"user.", b"trusted.", b"security.")
_OUT_OF_LINE = 0x100
_NAME = struct.Struct("<HH")
_SIZE = struct.Struct("<I")
_SET = struct.Struct("<QII")
_TABLE = struct.Struct("<QII")
_MAX_VALUE = 65536
_MAX_SETS = 1 << 24
_MAX_BYTES = 1 << 28  # of names and values in all sets together, which may all lead to one stored value


def kind_of(name: bytes, value: bytes) -> int:
    """The number that squashfs stores for the prefix of an attribute's name.

    FormatError for names outside user, trusted and security, which are all that the kernel's squashfs has,
    and for values over 64 KiB, which is the kernel's limit.
    """
    for number, prefix in enumerate(_PREFIXES):
        if name.startswith(prefix) and len(value) <= _MAX_VALUE:
            return number
    raise FormatError(
        f"squashfs cannot hold the extended attribute {name!r} of {len(value)} bytes",
        hint="convert without keeping extended attributes",
    )


class XattrReader:
    """The xattr sets of a file by their id. Not for several threads."""

    def __init__(self, descriptor: int, superblock: Superblock, expand: Expand, name: str) -> None:
        self._known: dict[int, Xattrs] = {NO_XATTRS: ()}
        self._sets: list[tuple[int, int, int]] = []
        self._left = _MAX_BYTES
        at = superblock.xattr_table
        if at == ABSENT:
            return
        raw = read_at(descriptor, _TABLE.size, at, name)
        if len(raw) < _TABLE.size:
            raise FormatError(f"{name} is damaged: the xattr table is cut short")
        start, count, _ = _TABLE.unpack(raw)
        if start > at or count > _MAX_SETS:
            raise FormatError(f"{name} is damaged: {count} xattr sets at {start}")
        ids = read_indexed(
            descriptor, at + _TABLE.size, count, _SET.size, expand, end=superblock.bytes_used, name=name
        )
        self._sets = list(_SET.iter_unpack(ids))
        self._table = MetadataReader(descriptor, start, at, expand, name)
        self._name = name

    def get(self, number: int) -> Xattrs:
        """The set `number`, sorted by name; FormatError if it is missing or damaged."""
        found = self._known.get(number)
        if found is None:
            if number >= len(self._sets):
                raise FormatError(f"xattr set {number} of {len(self._sets)} asked for")
            found = self._known[number] = self._read(*self._sets[number])
        return found

    def _read(self, reference: int, count: int, _size: int) -> Xattrs:
        if count > METADATA_SIZE * 8:
            raise FormatError(f"{self._name} is damaged: an xattr set of {count} entries")
        position, offset = reference >> 16, reference & 0xFFFF
        pairs = []
        for _ in range(count):
            head, position, offset = self._take(position, offset, _NAME.size)
            kind, length = _NAME.unpack(head)
            name, position, offset = self._take(position, offset, length)
            if kind & 0xFF >= len(_PREFIXES):
                raise FormatError(f"{self._name} is damaged: an xattr of kind {kind}")
            head, position, offset = self._take(position, offset, _SIZE.size)
            (length,) = _SIZE.unpack(head)
            value, position, offset = self._take(position, offset, length)
            if kind & _OUT_OF_LINE:
                value = self._elsewhere(value)
            self._left -= len(name) + len(value)
            if self._left < 0:
                raise FormatError(f"{self._name} has more than {_MAX_BYTES} bytes of extended attributes")
            pairs.append((_PREFIXES[kind & 0xFF] + name, value))
        return tuple(sorted(pairs))

    def _elsewhere(self, reference: bytes) -> bytes:
        if len(reference) != 8:
            raise FormatError(f"{self._name} is damaged: an xattr value's place in {len(reference)} bytes")
        place = int.from_bytes(reference, "little")
        head, position, offset = self._take(place >> 16, place & 0xFFFF, _SIZE.size)
        return self._take(position, offset, _SIZE.unpack(head)[0])[0]

    def _take(self, position: int, offset: int, length: int) -> tuple[bytes, int, int]:
        if length > _MAX_VALUE:
            raise FormatError(f"{self._name} is damaged: an xattr of {length} bytes")
        data, following = self._table.block(position)
        while offset >= len(data) and length:
            offset -= len(data)
            position = following
            data, following = self._table.block(position)
        taken = self._table.read(position, offset, length) if length else b""
        return taken, position, offset + length


class XattrWriter:
    """Gathers xattr sets while inodes are written, then makes the table."""

    def __init__(self, compress: Compress) -> None:
        self._compress = compress
        self._pairs = MetadataWriter(compress)
        self._known: dict[Xattrs, int] = {(): NO_XATTRS}
        self._sets: list[bytes] = []

    def add(self, xattrs: Xattrs) -> int:
        """The id that an inode with these xattrs stores.

        FormatError as `kind_of` raises it.
        """
        found = self._known.get(xattrs)
        if found is not None:
            return found
        position, offset = self._pairs.position
        size = 0
        for name, value in sorted(xattrs):
            kind = kind_of(name, value)
            short = name[len(_PREFIXES[kind]) :]
            self._pairs.write(_NAME.pack(kind, len(short)) + short + _SIZE.pack(len(value)) + value)
            size += len(name) + 1 + len(value)  # what listxattr and getxattr will need, as mksquashfs counts
        number = self._known[xattrs] = len(self._sets)
        self._sets.append(_SET.pack(position << 16 | offset, len(xattrs), size))
        return number

    def table(self, start: int) -> tuple[bytes, int]:
        """The bytes to be placed at `start`, and the position that the superblock names (ABSENT if none)."""
        if not self._sets:
            return b"", ABSENT
        pairs, _ = self._pairs.finish()
        ids = MetadataWriter(self._compress)
        ids.write(b"".join(self._sets))
        stored, starts = ids.finish()
        head = start + len(pairs) + len(stored)
        table = pairs + stored + _TABLE.pack(start, len(self._sets), 0)
        return table + pointers(start + len(pairs) + at for at in starts), head
