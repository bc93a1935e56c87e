"""Writing a tree: inodes, listings, owners, xattrs and the export table, from the leaves up.

A listing refers to inodes by position, and a folder's inode to its listing by position, so a folder is
written when all that it holds has been. The inodes of one folder's files lie side by side, so that reading a
folder touches few metadata blocks.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.errors import FormatError
from pipeline.squashfs.codecs import Compress
from pipeline.squashfs.directory import MAX_NAME, ListingWriter, Reference
from pipeline.squashfs.inode import (
    BASIC_TYPE,
    EMPTY_LISTING,
    EXTENDED,
    MAX_TARGET,
    NO_FRAGMENT,
    NO_XATTRS,
    Kind,
    device_number,
)
from pipeline.squashfs.metadata import MetadataWriter
from pipeline.squashfs.packwriter import EntryLike
from pipeline.squashfs.superblock import METADATA_SIZE
from pipeline.squashfs.xattr import XattrWriter

MAX_OWNERS = 0xFFFF
_U32 = 0xFFFF_FFFF
_BASIC_FILE = struct.Struct("<4H6I")
_EXTENDED_FILE = struct.Struct("<4H2I3Q4I")
_BASIC_FOLDER = struct.Struct("<4H4I2HI")
_EXTENDED_FOLDER = struct.Struct("<4H6I2HI")
_HEADER = struct.Struct("<4H2I")
_ONE = struct.Struct("<I")
_TWO = struct.Struct("<2I")


class NodeLike(Protocol):
    """One path of a merged tree; see pipeline.oci.tree.Node, which has this shape."""

    @property
    def entry(self) -> EntryLike: ...
    @property
    def layer(self) -> int: ...
    @property
    def index(self) -> int: ...
    @property
    def link_to(self) -> bytes | None: ...
    @property
    def content(self) -> bytes | None: ...


# Where a file's bytes are: the start of its blocks, its fragment and the offset in that, its block words as
# stored, and how many of its bytes lie in holes. A tuple, since there may be a million of them.
Place = tuple[int, int, int, bytes, int]
NOWHERE: Place = (0, NO_FRAGMENT, 0, b"", 0)
Locate = Callable[[bytes, NodeLike], Place]
_Child = tuple[bytes, bytes, "NodeLike | Reference"]  # name, path; a folder's inode is known when it joins


@dataclass(slots=True)
class _Folder:
    name: bytes
    prefix: bytes
    entry: EntryLike
    number: int
    nlink: int = 2
    children: list[_Child] = field(default_factory=list)


class TreeWriter:
    """Writes one tree; after `write` the tables can be taken out."""

    def __init__(self, compress: Compress, locate: Locate) -> None:
        self.inodes = MetadataWriter(compress)
        self.listings = MetadataWriter(compress)
        self.xattrs = XattrWriter(compress)
        self.ids: dict[int, int] = {}
        self._locate = locate
        self._references = array("Q")
        self._links: Counter[bytes] = Counter()
        self._linked: dict[bytes, Reference] = {}

    @property
    def inode_count(self) -> int:
        return len(self._references)

    def write(self, nodes: Mapping[bytes, NodeLike]) -> int:
        """Write all of `nodes`, which come folder before content and by name; returns the root's reference.

        FormatError for what squashfs cannot hold: names over 255 bytes, more than 65,535 owners, devices and
        xattrs outside its ranges.
        """
        self._links.update(node.link_to for node in nodes.values() if node.link_to is not None)
        items = iter(nodes.items())
        directory = Kind.DIRECTORY
        path, node = next(items, (b"", None))
        if node is None or path or node.entry.kind != Kind.DIRECTORY:
            raise FormatError("the root of a tree is not a folder")
        folder = _Folder(b"", b"", node.entry, self._new_number())
        stack = [folder]
        prefix, children = folder.prefix, folder.children
        for path, node in items:
            while not path.startswith(prefix):
                folder = self._close(stack)
                prefix, children = folder.prefix, folder.children
            name = path[len(prefix) :]
            if not 0 < len(name) <= MAX_NAME or b"/" in name:
                raise FormatError(f"squashfs cannot hold the name {os.fsdecode(path)!r} here")
            if node.entry.kind == directory:
                folder = _Folder(name, path + b"/", node.entry, self._new_number())
                prefix, children = folder.prefix, folder.children
                stack.append(folder)
            else:
                children.append((name, path, node))
        while len(stack) > 1:
            self._close(stack)
        _, block, offset, _ = self._write_folder(stack[0], self.inode_count + 1)
        return block << 16 | offset

    def id_table(self) -> bytes:
        return array("I", self.ids).tobytes()

    def export_table(self) -> bytes:
        return self._references.tobytes()

    def _new_number(self) -> int:
        self._references.append(0)
        return len(self._references)

    def _close(self, stack: list[_Folder]) -> _Folder:
        """Write the innermost open folder; returns the one that it is in."""
        folder = stack.pop()
        parent = stack[-1]
        parent.nlink += 1
        reference = self._write_folder(folder, parent.number)
        parent.children.append((folder.name, b"", reference))
        return parent

    def _write_folder(self, folder: _Folder, parent: int) -> Reference:
        references = self._leaves(folder.children)
        folder.children.clear()
        listing = ListingWriter(self.listings)
        listing.add(references)
        size, index = listing.finish()
        entry, number = folder.entry, folder.number
        xattr = self.xattrs.add(entry.xattrs) if entry.xattrs else NO_XATTRS
        start, at = listing.start
        head = (entry.mode, self._id(entry.uid), self._id(entry.gid), _time(entry.mtime), number)
        if size + EMPTY_LISTING <= 0xFFFF and not index and xattr == NO_XATTRS:
            data = _BASIC_FOLDER.pack(1, *head, start, folder.nlink, size + EMPTY_LISTING, at, parent)
        else:
            data = _EXTENDED_FOLDER.pack(
                1 + EXTENDED, *head, folder.nlink, size + EMPTY_LISTING, start, parent, len(index), at, xattr
            ) + b"".join(index)
        return self._store(1, number, data)

    def _leaves(self, children: list[_Child]) -> list[tuple[bytes, Reference]]:
        """Write the inodes of a folder's files and other leaves; gives all names with their references.

        This runs once for every file, so regular files, nearly all of them, are handled without another call.
        """
        inodes, positions, ids, links = self.inodes, self._references, self.ids, self._links
        pack, locate, pending, file = _BASIC_FILE.pack, self._locate, self.inodes.pending, Kind.FILE
        block = inodes.stored_size
        written: list[tuple[bytes, Reference]] = []
        for name, path, node in children:
            if isinstance(node, tuple):
                written.append((name, node))
                continue
            entry = node.entry
            if entry.kind == file and node.link_to is None and path not in links and not entry.xattrs:
                owner, group = ids.get(entry.uid), ids.get(entry.gid)
                start, fragment, offset, words, sparse = locate(path, node)
                size, mtime = entry.size, entry.mtime
                plain = start <= _U32 and size <= _U32 and 0 <= mtime <= _U32 and not sparse
                if plain and owner is not None and group is not None:
                    at = len(pending)
                    positions.append(block << 16 | at)
                    number = len(positions)
                    pending += pack(2, entry.mode, owner, group, mtime, number, start, fragment, offset, size)
                    pending += words
                    written.append((name, (2, block, at, number)))
                    if len(pending) >= METADATA_SIZE:
                        inodes.flush()
                        block = inodes.stored_size
                    continue
            written.append((name, self._leaf(path, node)))
            block = inodes.stored_size
        return written

    def _store(self, kind: int, number: int, data: bytes) -> Reference:
        block, offset = self.inodes.position
        self.inodes.write(data)
        self._references[number - 1] = block << 16 | offset
        return kind, block, offset, number

    def _leaf(self, path: bytes, node: NodeLike) -> Reference:
        """Write the inode of anything but a folder, unless another name of it was met before."""
        first = path if node.link_to is None else node.link_to
        nlink = self._links.get(first, 0) + 1
        if nlink > 1:
            known = self._linked.get(first)
            if known is not None:
                return known
        number = self._new_number()
        entry = node.entry
        kind = BASIC_TYPE[Kind(entry.kind)]
        if entry.kind == Kind.FILE:
            data = self._file(entry, number, nlink, self._locate(first, node))
        else:
            data = self._special(entry, kind, number, nlink)
        reference = self._store(kind, number, data)
        if nlink > 1:
            self._linked[first] = reference
        return reference

    def _file(self, entry: EntryLike, number: int, nlink: int, place: Place) -> bytes:
        xattr = self.xattrs.add(entry.xattrs) if entry.xattrs else NO_XATTRS
        head = (entry.mode, self._id(entry.uid), self._id(entry.gid), _time(entry.mtime), number)
        start, fragment, offset, words, sparse = place
        size = entry.size
        if nlink == 1 and xattr == NO_XATTRS and not sparse and start <= _U32 and size <= _U32:
            return _BASIC_FILE.pack(2, *head, start, fragment, offset, size) + words
        kind = 2 + EXTENDED
        return _EXTENDED_FILE.pack(kind, *head, start, size, sparse, nlink, fragment, offset, xattr) + words

    def _special(self, entry: EntryLike, kind: int, number: int, nlink: int) -> bytes:
        xattr = self.xattrs.add(entry.xattrs) if entry.xattrs else NO_XATTRS
        extended = xattr != NO_XATTRS
        data = _HEADER.pack(
            kind + EXTENDED * extended,
            entry.mode,
            self._id(entry.uid),
            self._id(entry.gid),
            _time(entry.mtime),
            number,
        )
        if entry.kind == Kind.SYMLINK:
            if not 0 < len(entry.target) <= MAX_TARGET:
                raise FormatError(f"squashfs cannot hold a link target of {len(entry.target)} bytes")
            data += _TWO.pack(nlink, len(entry.target)) + entry.target
        elif entry.kind in (Kind.CHAR, Kind.BLOCK):
            data += _TWO.pack(nlink, device_number(entry.major, entry.minor))
        else:
            data += _ONE.pack(nlink)
        return data + _ONE.pack(xattr) if extended else data

    def _id(self, owner: int) -> int:
        found = self.ids.get(owner)
        if found is None:
            if len(self.ids) >= MAX_OWNERS:
                raise FormatError(
                    f"an image has more than {MAX_OWNERS} owners, which squashfs cannot hold",
                    hint="convert without keeping owners",
                )
            found = self.ids[owner] = len(self.ids)
        return found


def _time(seconds: int) -> int:
    """Times are 32 bits without a sign: before 1970 and after 2106 the nearer end is taken."""
    return min(max(seconds, 0), _U32)
