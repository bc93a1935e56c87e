"""Reading a squashfs file without mounting it: the tree, single files, and where their bytes are."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from pipeline.errors import FormatError
from pipeline.squashfs.blocks import (
    LENGTH,
    Span,
    check_span,
    cut_tail,
    read_fragment,
    read_fragments,
    read_span,
)
from pipeline.squashfs.codecs import make_expand
from pipeline.squashfs.directory import read_listing
from pipeline.squashfs.inode import NO_FRAGMENT, NO_XATTRS, Inode, InodeParser, Kind
from pipeline.squashfs.metadata import MetadataReader, read_indexed
from pipeline.squashfs.superblock import SIZE, Superblock
from pipeline.squashfs.xattr import XattrReader
from pipeline.system import untrusted

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_READ = 1 << 30  # `read` gives whole files; larger ones are streamed
_MAX_DEPTH = 4096
_MAX_LINKS = 40  # in one path, as Linux allows


class SquashfsImage:
    """An open squashfs 4.0 file.

    Every position and size is checked before it is used: a damaged file ends in FormatError, after time and
    memory bounded by the file's own size. One object serves one thread; ``expand.read_all`` reads
    with several. `owners` are the numbers of all users and groups in it.
    """

    def __init__(self, descriptor: int, path: Path, superblock: Superblock) -> None:
        self.path = path
        self.superblock = superblock
        self.descriptor = descriptor
        name = self.name = str(path)
        expand = self._expand = make_expand(superblock.compressor)
        raw = read_indexed(
            descriptor,
            superblock.id_table,
            superblock.id_count,
            4,
            expand,
            end=superblock.bytes_used,
            name=name,
        )
        self.owners: tuple[int, ...] = struct.unpack(f"<{superblock.id_count}I", raw)
        self._xattrs = XattrReader(descriptor, superblock, expand, name)
        self.fragments = read_fragments(descriptor, superblock, expand, name)
        inodes = MetadataReader(descriptor, superblock.inode_table, superblock.directory_table, expand, name)
        self._inodes = InodeParser(inodes, self.owners, superblock.block_size, superblock.inode_count)
        end = superblock.fragment_table if self.fragments else superblock.id_table
        self._listings = MetadataReader(descriptor, superblock.directory_table, end, expand, name)
        self._fragment: tuple[int, bytes] = (NO_FRAGMENT, b"")
        self._linked: dict[int, Inode] = {}

    @classmethod
    def open(cls, path: Path) -> SquashfsImage:
        """Open and check the file's tables; FormatError if it is not a sound squashfs file."""
        try:
            descriptor = untrusted.open_regular(path, follow=True)
        except OSError as error:
            raise FormatError(f"cannot open {path}: {error.strerror}") from error
        try:
            size = os.fstat(descriptor).st_size
            superblock = Superblock.parse(os.pread(descriptor, SIZE, 0), file_size=size, name=str(path))
            return cls(descriptor, path, superblock)
        except OSError as error:
            os.close(descriptor)
            raise FormatError(f"cannot read {path}: {error.strerror}") from error
        except BaseException:
            os.close(descriptor)
            raise

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def root(self) -> Inode:
        inode = self._inode(self.superblock.root_inode)
        if inode.kind is not Kind.DIRECTORY:
            raise self._damaged("its root is not a folder")
        return inode

    def walk(self, top: Inode | None = None) -> Iterator[tuple[bytes, Inode]]:
        """Every path with its inode: parents first, names of one folder sorted by bytes; b"" is the root.

        With `top`, a folder, the paths are those in it and b"" is itself.
        """
        root = top or self.root()
        yield b"", root
        folders = {root.number}
        budget = self._listings.most_bytes - root.listing
        details, counted = self._inodes.most_bytes, set[int]()
        stack = [(b"", self._entries(root))]
        while stack:
            prefix, entries = stack[-1]
            for name, inode in entries:
                path = prefix + name
                yield path, inode
                if (large := len(inode.words) + len(inode.target)) and inode.reference not in counted:
                    details -= large
                    if details < 0:
                        raise self._damaged(f"more is said of its files than its inodes hold, at {path!r}")
                    if inode.nlink > 1:
                        counted.add(inode.reference)
                if inode.kind is Kind.DIRECTORY:
                    budget -= inode.listing
                    if inode.number in folders or budget < 0 or len(stack) >= _MAX_DEPTH:
                        raise self._damaged(f"the folder {os.fsdecode(path)} is inside itself")
                    folders.add(inode.number)
                    stack.append((path + b"/", self._entries(inode)))
                    break
            else:
                stack.pop()

    def lookup(self, path: bytes) -> Inode:
        """The inode at `path` (no leading "/", links not followed); FileNotFoundError without one."""
        inode = self.root()
        for part in path.split(b"/") if path else ():
            inode = self._child(inode, part, path)
        return inode

    def resolve(self, path: bytes) -> Inode:
        """The inode at `path`, links followed as in a chroot; FileNotFoundError if it leads nowhere."""
        parts = [part for part in reversed(path.split(b"/")) if part]
        trail = [self.root()]
        links = 0
        while parts:
            part = parts.pop()
            if part in (b".", b".."):
                if part == b".." and len(trail) > 1:
                    trail.pop()
                continue
            inode = self._child(trail[-1], part, path)
            if inode.kind is not Kind.SYMLINK:
                trail.append(inode)
                continue
            links += 1
            if links > _MAX_LINKS:
                raise FileNotFoundError(f"{self.path}: too many links in {os.fsdecode(path)}")
            if inode.target.startswith(b"/"):
                del trail[1:]
            parts += [part for part in reversed(inode.target.split(b"/")) if part]
        return trail[-1]

    def _child(self, folder: Inode, name: bytes, path: bytes) -> Inode:
        if folder.kind is Kind.DIRECTORY:
            for entry, reference, _ in read_listing(
                self._listings, folder.start, folder.offset, folder.listing
            ):
                if entry == name:
                    return self._inode(reference)
        raise FileNotFoundError(f"{self.path} has no {os.fsdecode(path)}")

    def listdir(self, folder: Inode) -> Iterator[tuple[bytes, Inode]]:
        """The names in a folder with their inodes, sorted by bytes."""
        return self._entries(folder)

    def spans(self, inode: Inode) -> Iterator[Span]:
        """The blocks of a file, in order, without a fragment at its end."""
        block_size = self.superblock.block_size
        position, left = inode.start, inode.size
        for (word,) in struct.iter_unpack("<I", inode.words):
            yield check_span(Span(position, word, min(block_size, left)), self.superblock, self.name)
            position += word & LENGTH
            left -= block_size

    def open_file(self, inode: Inode) -> Iterator[bytes]:
        """A file's bytes, block by block; FormatError where they are damaged."""
        if inode.kind is not Kind.FILE:
            raise FormatError(f"inode {inode.number} of {self.path} is not a file")
        for span in self.spans(inode):
            yield read_span(self.descriptor, span, self._expand, self.name)
        if inode.fragment != NO_FRAGMENT:
            length = inode.size % self.superblock.block_size
            plain = self._expanded_fragment(inode.fragment)
            yield cut_tail(plain, inode.offset, length, self.name)

    def read(self, inode: Inode, *, limit: int = MAX_READ) -> bytes:
        """A whole file; FormatError when it is damaged or larger than `limit` bytes."""
        if inode.size > limit:
            raise FormatError(
                f"a file of {inode.size} bytes in {self.path}; at most {limit} are read at once"
            )
        return b"".join(self.open_file(inode))

    def fragment_span(self, number: int) -> Span:
        """Where a fragment block is; its `length` is only the most that it can expand to."""
        if number >= len(self.fragments):
            raise self._damaged(f"fragment {number} of {len(self.fragments)}")
        position, word = self.fragments[number]
        return check_span(Span(position, word, self.superblock.block_size), self.superblock, self.name)

    def _expanded_fragment(self, number: int) -> bytes:
        if self._fragment[0] != number:
            span = self.fragment_span(number)
            self._fragment = (number, read_fragment(self.descriptor, span, self._expand, self.name))
        return self._fragment[1]

    def _entries(self, folder: Inode) -> Iterator[tuple[bytes, Inode]]:
        for name, reference, number in read_listing(
            self._listings, folder.start, folder.offset, folder.listing
        ):
            inode = self._inode(reference)
            if inode.number != number:
                raise self._damaged(f"the name {name!r} leads to inode {inode.number}, not {number}")
            yield name, inode

    def _inode(self, reference: int) -> Inode:
        found = self._linked.get(reference)
        if found is not None:
            return found
        inode = self._inodes.read(reference)
        if inode.xattr_id != NO_XATTRS:
            inode.xattrs = self._xattrs.get(inode.xattr_id)
        if inode.nlink > 1 and inode.words:  # one object for all names: its words may be megabytes
            self._linked[reference] = inode
        return inode

    def _damaged(self, what: str) -> FormatError:
        return FormatError(f"{self.path} is damaged: {what}", hint="make or copy the file again")
