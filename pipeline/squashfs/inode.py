"""Inodes: what a file system object is, and where its bytes are.

Each kind has a basic and an extended form. The extended one is needed for xattrs, hard links of files, holes,
positions or sizes of 4 GiB and more, and large folders.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from pipeline.errors import FormatError
from pipeline.squashfs.metadata import MetadataReader

NO_FRAGMENT = 0xFFFF_FFFF
NO_XATTRS = 0xFFFF_FFFF
MAX_TARGET = 65536
EMPTY_LISTING = 3  # a listing's size is stored plus 3


class Kind(IntEnum):
    """What an inode is; the values are those of the tar entries that images are made of."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    HARDLINK = 4  # only in layers: in a squashfs file two names share one inode
    CHAR = 5
    BLOCK = 6
    FIFO = 7
    SOCKET = 8


_BASIC_KINDS = {
    1: Kind.DIRECTORY,
    2: Kind.FILE,
    3: Kind.SYMLINK,
    4: Kind.BLOCK,
    5: Kind.CHAR,
    6: Kind.FIFO,
    7: Kind.SOCKET,
}
BASIC_TYPE = {kind: number for number, kind in _BASIC_KINDS.items()}
EXTENDED = 7  # what is added to a basic type's number
_KINDS = {**_BASIC_KINDS, **{number + EXTENDED: kind for number, kind in _BASIC_KINDS.items()}}

_HEADER = struct.Struct("<4H2I")
_DIRECTORY = struct.Struct("<IIHHI")
_EXTENDED_DIRECTORY = struct.Struct("<IIIIHHI")
_FILE = struct.Struct("<IIII")
_EXTENDED_FILE = struct.Struct("<QQQIIII")
_TWO = struct.Struct("<II")
_THREE = struct.Struct("<III")
_ONE = struct.Struct("<I")
_SHORTEST = 20


@dataclass(slots=True, kw_only=True)
class Inode:
    """One object of the tree. `size` is a file's length in bytes, `mtime` seconds since 1970, `mode` 0o7777.

    Two names with one `number` are hard links, and share one `reference`, the place of the inode itself.
    `start`, `words`, `fragment` and `offset` say where a file's blocks are; for a folder `start` and `offset`
    lead to its listing of `listing` bytes.
    """

    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime: int
    number: int
    size: int = 0
    nlink: int = 1
    target: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    start: int = 0
    words: bytes = b""
    fragment: int = NO_FRAGMENT
    offset: int = 0
    listing: int = 0
    xattr_id: int = NO_XATTRS
    reference: int = 0


class InodeParser:
    """Reads inodes out of an inode table. Not for several threads."""

    def __init__(
        self, table: MetadataReader, ids: tuple[int, ...], block_size: int, inode_count: int
    ) -> None:
        self._table = table
        self._ids = ids
        self._block_size = block_size
        self._inode_count = inode_count

    @property
    def most_bytes(self) -> int:
        """More than the inodes of a sound file can take together."""
        return self._table.most_bytes

    def read(self, reference: int) -> Inode:
        """The inode at `reference` (block position << 16 | offset); FormatError if it is damaged."""
        position, offset = reference >> 16, reference & 0xFFFF
        data, at = self._table.window(position, offset, _SHORTEST)
        number, mode, uid, gid, mtime, inode_number = _HEADER.unpack_from(data, at)
        kind = _KINDS.get(number)
        if kind is None or uid >= len(self._ids) or gid >= len(self._ids):
            raise self._table.damaged(f"inode {reference:#x} of type {number} with owner {uid}, {gid}")
        if not 0 < inode_number <= self._inode_count:
            raise self._table.damaged(
                f"inode {reference:#x} has number {inode_number} of {self._inode_count}"
            )
        inode = Inode(
            kind=kind,
            mode=mode & 0o7777,
            uid=self._ids[uid],
            gid=self._ids[gid],
            mtime=mtime,
            number=inode_number,
            reference=reference,
        )
        extended = number > EXTENDED
        if kind is Kind.FILE:
            self._file(inode, position, offset, extended)
        elif kind is Kind.DIRECTORY:
            self._directory(inode, position, offset, extended)
        elif kind is Kind.SYMLINK:
            self._symlink(inode, position, offset, extended)
        else:
            self._special(inode, position, offset, extended)
        return inode

    def _file(self, inode: Inode, position: int, offset: int, extended: bool) -> None:
        if extended:
            head = _HEADER.size + _EXTENDED_FILE.size
            data, at = self._table.window(position, offset, head)
            inode.start, inode.size, _, inode.nlink, inode.fragment, inode.offset, inode.xattr_id = (
                _EXTENDED_FILE.unpack_from(data, at + _HEADER.size)
            )
        else:
            head = _HEADER.size + _FILE.size
            data, at = self._table.window(position, offset, head)
            inode.start, inode.fragment, inode.offset, inode.size = _FILE.unpack_from(data, at + _HEADER.size)
        if inode.fragment == NO_FRAGMENT:
            blocks = -(-inode.size // self._block_size)
        else:
            blocks = inode.size // self._block_size
        if blocks:
            data, at = self._table.window(position, offset, head + 4 * blocks)
            inode.words = data[at + head : at + head + 4 * blocks]

    def _directory(self, inode: Inode, position: int, offset: int, extended: bool) -> None:
        if extended:
            data, at = self._table.window(position, offset, _HEADER.size + _EXTENDED_DIRECTORY.size)
            inode.nlink, inode.listing, inode.start, _, _, inode.offset, inode.xattr_id = (
                _EXTENDED_DIRECTORY.unpack_from(data, at + _HEADER.size)
            )
        else:
            data, at = self._table.window(position, offset, _HEADER.size + _DIRECTORY.size)
            inode.start, inode.nlink, inode.listing, inode.offset, _ = _DIRECTORY.unpack_from(
                data, at + _HEADER.size
            )
        inode.listing = max(inode.listing - EMPTY_LISTING, 0)

    def _symlink(self, inode: Inode, position: int, offset: int, extended: bool) -> None:
        head = _HEADER.size + _TWO.size
        data, at = self._table.window(position, offset, head)
        inode.nlink, length = _TWO.unpack_from(data, at + _HEADER.size)
        if length > MAX_TARGET:
            raise self._table.damaged(f"a link target of {length} bytes")
        data, at = self._table.window(position, offset, head + length + (_ONE.size if extended else 0))
        inode.target = data[at + head : at + head + length]
        inode.size = length
        if extended:
            (inode.xattr_id,) = _ONE.unpack_from(data, at + head + length)

    def _special(self, inode: Inode, position: int, offset: int, extended: bool) -> None:
        data, at = self._table.window(
            position, offset, _HEADER.size + (_THREE.size if extended else _ONE.size)
        )
        at += _HEADER.size
        device = 0
        if inode.kind in (Kind.CHAR, Kind.BLOCK):
            data, at = self._table.window(
                position, offset, _HEADER.size + (_THREE.size if extended else _TWO.size)
            )
            at += _HEADER.size
            if extended:
                inode.nlink, device, inode.xattr_id = _THREE.unpack_from(data, at)
            else:
                inode.nlink, device = _TWO.unpack_from(data, at)
        elif extended:
            inode.nlink, inode.xattr_id = _TWO.unpack_from(data, at)
        else:
            (inode.nlink,) = _ONE.unpack_from(data, at)
        inode.major = (device >> 8) & 0xFFF
        inode.minor = (device & 0xFF) | (device >> 12) & 0xFFF00


def device_number(major: int, minor: int) -> int:
    """Major and minor as the kernel's new_encode_dev stores them; FormatError where they do not fit."""
    if not 0 <= major < 1 << 12 or not 0 <= minor < 1 << 20:
        raise FormatError(f"device {major}:{minor} does not fit into a squashfs inode")
    return minor & 0xFF | major << 8 | (minor & 0xFFF00) << 12
