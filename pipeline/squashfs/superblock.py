"""The superblock: 96 bytes at the start of every squashfs file.

Source: Linux Documentation/filesystems/squashfs.rst and fs/squashfs/squashfs_fs.h, format 4.0.
All numbers are little endian; positions count bytes from the start of the file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from itertools import pairwise

from pipeline.errors import FormatError

MAGIC = 0x73717368  # "hsqs" on disk
SIZE = 96
ABSENT = 0xFFFF_FFFF_FFFF_FFFF  # the position of a table that is not there
METADATA_SIZE = 8192
MIN_BLOCK_SIZE = 4096
MAX_BLOCK_SIZE = 1 << 20
PAD = 4096  # block devices come in pages, so a file is padded to this

_LAYOUT = struct.Struct("<5I6H8Q")


class Compressor(IntEnum):
    """How data and metadata blocks are compressed; the values are those on disk."""

    GZIP = 1
    LZMA = 2
    LZO = 3
    XZ = 4
    LZ4 = 5
    ZSTD = 6


class Flags(IntFlag):
    """The superblock's flag bits."""

    RAW_INODES = 0x0001
    RAW_DATA = 0x0002
    CHECK = 0x0004
    RAW_FRAGMENTS = 0x0008
    NO_FRAGMENTS = 0x0010
    ALWAYS_FRAGMENTS = 0x0020
    DUPLICATES = 0x0040
    EXPORTABLE = 0x0080
    RAW_XATTRS = 0x0100
    NO_XATTRS = 0x0200
    COMPRESSOR_OPTIONS = 0x0400
    RAW_IDS = 0x0800


@dataclass(frozen=True, slots=True, kw_only=True)
class Superblock:
    """What the first 96 bytes say; `mkfs_time` in seconds since 1970, positions and `bytes_used` in bytes."""

    inode_count: int
    mkfs_time: int
    block_size: int
    fragment_count: int
    compressor: Compressor
    flags: Flags
    id_count: int
    root_inode: int
    bytes_used: int
    id_table: int
    xattr_table: int
    inode_table: int
    directory_table: int
    fragment_table: int
    export_table: int

    def to_bytes(self) -> bytes:
        """The 96 bytes that belong at position 0."""
        return _LAYOUT.pack(
            MAGIC,
            self.inode_count,
            self.mkfs_time,
            self.block_size,
            self.fragment_count,
            self.compressor,
            self.block_size.bit_length() - 1,
            self.flags,
            self.id_count,
            4,
            0,
            self.root_inode,
            self.bytes_used,
            self.id_table,
            self.xattr_table,
            self.inode_table,
            self.directory_table,
            self.fragment_table,
            self.export_table,
        )

    @classmethod
    def parse(cls, raw: bytes, *, file_size: int, name: str) -> Superblock:
        """Read and check the superblock of the file `name` of `file_size` bytes, else FormatError."""
        if len(raw) < SIZE or file_size < SIZE:
            raise FormatError(f"{name}: {file_size} bytes are too few for a squashfs file")
        values = _LAYOUT.unpack_from(raw)
        magic, inodes, mkfs_time, block_size, fragments, compressor, block_log, flags, ids, major, minor = (
            values[:11]
        )
        if magic != MAGIC:
            raise FormatError(f"{name} is not a squashfs file: it begins with {raw[:4]!r}, not b'hsqs'")
        if (major, minor) != (4, 0):
            raise FormatError(f"{name} is squashfs {major}.{minor}; only 4.0 is read")
        if not MIN_BLOCK_SIZE <= block_size <= MAX_BLOCK_SIZE or block_size != 1 << block_log:
            raise FormatError(f"{name}: damaged superblock: block size {block_size}, log {block_log}")
        if compressor not in Compressor.__members__.values():
            raise FormatError(f"{name}: unknown squashfs compressor {compressor}")
        block = cls(
            inode_count=inodes,
            mkfs_time=mkfs_time,
            block_size=block_size,
            fragment_count=fragments,
            compressor=Compressor(compressor),
            flags=Flags(flags),
            id_count=ids,
            root_inode=values[11],
            bytes_used=values[12],
            id_table=values[13],
            xattr_table=values[14],
            inode_table=values[15],
            directory_table=values[16],
            fragment_table=values[17],
            export_table=values[18],
        )
        block._check(file_size, name)
        return block

    def _check(self, file_size: int, name: str) -> None:
        if self.bytes_used > file_size:
            raise FormatError(
                f"{name} is cut short: it has {file_size} bytes, its superblock says {self.bytes_used}",
                hint="make or copy the file again",
            )
        order = [SIZE, self.inode_table, self.directory_table]
        if self.fragment_count:
            order.append(self.fragment_table)
        if self.export_table != ABSENT:
            order.append(self.export_table)
        order.append(self.id_table)
        if self.xattr_table != ABSENT:
            order.append(self.xattr_table)
        order.append(self.bytes_used)
        if any(lower > upper for lower, upper in pairwise(order)):
            raise FormatError(f"{name}: damaged superblock: its tables are out of order")
        if self.fragment_count > self.inode_table:
            raise FormatError(f"{name}: damaged superblock: more fragments than bytes for them")
        if not self.id_count or not self.inode_count:
            raise FormatError(f"{name}: damaged superblock: no inodes or no owners")
