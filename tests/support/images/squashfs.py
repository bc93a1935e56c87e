"""Images stitched in a test without layers: entries go into one pack, the tree is what was added."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from unittest import mock

from pipeline.oci.entry import Entry, EntryKind
from pipeline.oci.merge import merge
from pipeline.oci.tree import Tree
from pipeline.squashfs.cache import PackCache, pack_key
from pipeline.squashfs.codecs import Codec
from pipeline.squashfs.compressors import Compressors
from pipeline.squashfs.packwriter import PackWriter
from pipeline.squashfs.stitch import Stitched, StitchOptions, stitch


class Stitcher:
    """Collects entries; every method but the last returns the stitcher.

    `raw_tables` stores inodes, listings and tables without compression.
    """

    def __init__(
        self, folder: Path, *, block_size: int = 1 << 17, codec: Codec | None = None, raw_tables: bool = False
    ) -> None:
        self._folder = folder
        self._codec = codec or Codec()
        self._block_size = block_size
        self._raw_tables = raw_tables
        self._entries: list[tuple[Entry, bytes]] = []
        self._cache = PackCache(folder / "packs")
        self._key = pack_key("test", self._codec, block_size)
        self.result: Stitched | None = None

    def file(
        self, path: bytes, content: bytes = b"", *, xattrs: tuple[tuple[bytes, bytes], ...] = ()
    ) -> Stitcher:
        checksum = zlib.crc32(content)
        entry = Entry(path, EntryKind.FILE, 0o644, mtime=5, size=len(content), xattrs=xattrs, crc32=checksum)
        return self._add(entry, content)

    def folder(self, path: bytes) -> Stitcher:
        return self._add(Entry(path, EntryKind.DIRECTORY))

    def symlink(self, path: bytes, target: bytes) -> Stitcher:
        return self._add(Entry(path, EntryKind.SYMLINK, 0o777, target=target))

    def link(self, path: bytes, target: bytes) -> Stitcher:
        return self._add(Entry(path, EntryKind.HARDLINK, target=target))

    def device(self, path: bytes, major: int, minor: int) -> Stitcher:
        return self._add(Entry(path, EntryKind.CHAR, major=major, minor=minor))

    @property
    def pack_path(self) -> Path:
        return self._folder / "packs" / f"{self._key}.pack"

    def tree(self) -> Tree:
        return merge([[entry for entry, _ in self._entries]])

    def stitch(self, *, workers: int = 1) -> Path:
        """Pack and stitch; gives the image's path."""
        with self._cache.writing(self._key) as handle, Compressors(self._codec, workers=workers) as threads:
            writer = PackWriter(
                handle.write, threads, block_size=self._block_size, header={"block_size": self._block_size}
            )
            for entry, content in self._entries:
                parts = iter((content,))
                if entry.size < self._block_size:
                    writer.add(entry, lambda _, parts=parts: next(parts))  # type: ignore[misc]
                else:
                    writer.add(entry, _reader(content))
            handle.complete(writer.finish())
        path = self._folder / "made.sqsh"
        target = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        options = StitchOptions(codec=self._codec, block_size=self._block_size)
        pack = self._cache.open(self._key)
        assert pack is not None
        try:
            with pack, mock.patch.object(Codec, "make_compress", self._table_compress()):
                self.result = stitch(self.tree(), [pack], target, options)
        finally:
            os.close(target)
        return path

    def _table_compress(self) -> object:
        plain = Codec.make_compress
        return (lambda _codec: lambda data: data) if self._raw_tables else plain

    def _add(self, entry: Entry, content: bytes = b"") -> Stitcher:
        self._entries.append((entry, content))
        return self


def _reader(content: bytes):  # type: ignore[no-untyped-def]
    position = 0

    def read(size: int) -> bytes:
        nonlocal position
        data = content[position : position + size]
        position += len(data)
        return data

    return read
