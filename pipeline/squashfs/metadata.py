"""Metadata blocks: 8 KiB of inodes, listings or table entries, each compressed on its own.

Before each block stands a u16 with its stored length; the top bit says "stored as it is". A position inside a
table is the start of a stored block and an offset in its expanded bytes.
"""

from __future__ import annotations

import os
import struct
from collections import OrderedDict
from collections.abc import Iterable

from pipeline.errors import FormatError
from pipeline.squashfs.codecs import Compress, Expand
from pipeline.squashfs.superblock import METADATA_SIZE

_RAW = 0x8000
_CACHED_BLOCKS = 4096  # 32 MiB at most
_POINTER = struct.Struct("<Q")


class MetadataReader:
    """Random access to the metadata blocks in `start` (inclusive) to `end` (exclusive) of an open file.

    Not for several threads. Every read is checked against the borders, and a block is at most 8 KiB, so a
    damaged file costs bounded time and memory and ends in FormatError.
    """

    def __init__(self, descriptor: int, start: int, end: int, expand: Expand, name: str) -> None:
        self._descriptor = descriptor
        self._start = start
        self._end = end
        self._expand = expand
        self._name = name
        self._blocks: OrderedDict[int, tuple[bytes, int]] = OrderedDict()

    @property
    def most_bytes(self) -> int:
        """More expanded bytes than this cannot be in the table (a stored block has 3 bytes at least)."""
        return ((self._end - self._start) // 3 + 1) * METADATA_SIZE

    def block(self, position: int) -> tuple[bytes, int]:
        """The expanded block stored at `position` (relative to the table), and the position of the next."""
        found = self._blocks.get(position)
        if found is None:
            found = self._load(position)
            if len(self._blocks) >= _CACHED_BLOCKS:
                self._blocks.popitem(last=False)
            self._blocks[position] = found
        return found

    def _load(self, position: int) -> tuple[bytes, int]:
        at = self._start + position
        inside = self._start <= at < self._end
        raw = read_at(self._descriptor, METADATA_SIZE + 2, at, self._name) if inside else b""
        if len(raw) < 3:
            raise self.damaged(f"no metadata block at {at}")
        header = raw[0] | raw[1] << 8
        length = header & ~_RAW
        stored = raw[2 : 2 + length]
        if not 0 < length <= METADATA_SIZE or len(stored) < length or at + 2 + length > self._end:
            raise self.damaged(f"a metadata block of {length} bytes at {at}")
        try:
            plain = stored if header & _RAW else self._expand(stored, METADATA_SIZE)
        except FormatError as error:
            raise self.damaged(f"the metadata block at {at}: {error.message}") from error
        if not plain:
            raise self.damaged(f"an empty metadata block at {at}")
        return plain, position + 2 + length

    def window(self, position: int, offset: int, length: int) -> tuple[bytes, int]:
        """A buffer and an offset in it from where `length` bytes can be read; FormatError past the end."""
        data, following = self.block(position)
        if offset + length <= len(data):
            return data, offset
        if offset > len(data):
            raise self.damaged(f"offset {offset} lies outside the metadata block at {self._start + position}")
        if length > self.most_bytes:
            raise self.damaged(f"{length} bytes asked for at {self._start + position}")
        parts = [data[offset:]]
        have = len(data) - offset
        while have < length:
            data, following = self.block(following)
            parts.append(data)
            have += len(data)
        return b"".join(parts), 0

    def read(self, position: int, offset: int, length: int) -> bytes:
        """Exactly `length` bytes, over block borders where needed; FormatError past the table's end."""
        data, at = self.window(position, offset, length)
        return data[at : at + length]

    def damaged(self, what: str) -> FormatError:
        return FormatError(f"{self._name} is damaged: {what}", hint="make or copy the file again")


def read_at(descriptor: int, length: int, position: int, name: str) -> bytes:
    """What the file has there, at most `length` bytes; FormatError where the file system cannot read it."""
    try:
        return os.pread(descriptor, length, position)
    except OSError as error:
        raise FormatError(
            f"{name} cannot be read at byte {position}: {error.strerror}",
            hint="the disk or the file system fails: the kernel's log says more",
        ) from error


def read_indexed(
    descriptor: int, index: int, count: int, entry: int, expand: Expand, *, end: int, name: str
) -> bytes:
    """`count` entries of `entry` bytes from a table whose u64 index of block positions lies at `index`.

    Fragment, export, id and xattr id tables are all of this shape. `end` bounds the index itself.
    """
    total = count * entry
    blocks = -(-total // METADATA_SIZE)
    if index + 8 * blocks > end:
        raise FormatError(f"{name} is damaged: a table of {count} entries at {index} does not fit")
    raw = read_at(descriptor, 8 * blocks, index, name)
    if len(raw) != 8 * blocks:
        raise FormatError(f"{name} is damaged: the table index at {index} is cut short")
    reader = MetadataReader(descriptor, 0, end, expand, name)
    parts, following = [], -1
    for (position,) in _POINTER.iter_unpack(raw):
        if following not in (-1, position):  # one block many times over would fill the memory
            raise FormatError(f"{name} is damaged: the table at {index} is not in one piece")
        part, following = reader.block(position)
        parts.append(part)
    data = b"".join(parts)
    if len(data) < total or any(len(part) != METADATA_SIZE for part in parts[:-1]):
        raise FormatError(f"{name} is damaged: the table at {index} has {len(data)} bytes, not {total}")
    return data[:total]


class MetadataWriter:
    """Collects bytes into compressed metadata blocks, in memory.

    `position` is what inode references and listings store: the start of the stored block that the next byte
    goes to, and the offset in it.
    """

    def __init__(self, compress: Compress) -> None:
        self._compress = compress
        self._stored: list[bytes] = []
        self._starts: list[int] = []
        self.stored_size = 0
        self.pending = bytearray()

    @property
    def position(self) -> tuple[int, int]:
        return self.stored_size, len(self.pending)

    def write(self, data: bytes) -> None:
        self.pending += data
        self.flush()

    def flush(self) -> None:
        """Store the whole blocks of `pending`, which callers with many small writes may append to."""
        pending = self.pending
        while len(pending) >= METADATA_SIZE:
            self._store(bytes(pending[:METADATA_SIZE]))
            del pending[:METADATA_SIZE]

    def _store(self, plain: bytes) -> None:
        self._starts.append(self.stored_size)
        packed = self._compress(plain)
        if len(packed) < len(plain):
            self._stored.append(len(packed).to_bytes(2, "little") + packed)
        else:
            self._stored.append((len(plain) | _RAW).to_bytes(2, "little") + plain)
        self.stored_size += len(self._stored[-1])

    def finish(self) -> tuple[bytes, list[int]]:
        """All stored blocks, and where each starts."""
        if self.pending:
            self._store(bytes(self.pending))
            self.pending.clear()
        return b"".join(self._stored), self._starts


def indexed_table(entries: bytes, start: int, compress: Compress) -> tuple[bytes, int]:
    """A table at offset `start`, with its index of u64 positions. Returns (bytes, offset of the index)."""
    writer = MetadataWriter(compress)
    writer.write(entries)
    stored, starts = writer.finish()
    return stored + pointers(start + at for at in starts), start + len(stored)


def pointers(positions: Iterable[int]) -> bytes:
    """The index at the end of a table: each position as a little-endian u64."""
    return b"".join(_POINTER.pack(position) for position in positions)
