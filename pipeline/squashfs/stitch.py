"""Stitching: an image out of layer packs, without unpacking anything.

superblock, compressor options
packs     each from a 4 KiB border on, without what the tree does not need
extra     files that no layer has, and tails out of fragments that held hidden bytes
tables    inodes, listings, fragments, export, owners, xattrs; padded to 4 KiB
"""

from __future__ import annotations

import os
import struct
import threading
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from pipeline.errors import FormatError
from pipeline.squashfs.blocks import FRAGMENT_ENTRY
from pipeline.squashfs.codecs import Codec, Stored
from pipeline.squashfs.compressors import Compressors
from pipeline.squashfs.copying import copy_ranges
from pipeline.squashfs.inode import NO_FRAGMENT, Kind
from pipeline.squashfs.layers import Placed
from pipeline.squashfs.layout import ALIGNMENT, LAYER_SHIFT, Layout, Range, copy_place, file_words, lay_out
from pipeline.squashfs.metadata import indexed_table
from pipeline.squashfs.pack import Pack
from pipeline.squashfs.packindex import PackIndex
from pipeline.squashfs.packwriter import PackWriter
from pipeline.squashfs.superblock import ABSENT, PAD, SIZE, Flags, Superblock
from pipeline.squashfs.tails import TailReader
from pipeline.squashfs.tree import NOWHERE, Locate, NodeLike, Place, TreeWriter
from pipeline.squashfs.writing import write_at

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class StitchOptions:
    """What the bytes depend on in addition to tree and packs; `mkfs_time` in seconds since 1970."""

    codec: Codec
    block_size: int = 1 << 17
    mkfs_time: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stitched:
    """The finished image: its size in bytes with padding, and how many inodes it has.

    `ranges` has what was copied out of the packs, numbered as they were given.
    """

    size: int
    inode_count: int
    ranges: tuple[Range, ...]
    layout: Layout

    def placed(self, numbers: Sequence[int], shown: Sequence[bytearray]) -> Placed:
        """Where the content of the pack with these numbers went; `shown` is 1 for what the tree shows."""
        layout, first = self.layout, numbers[0]
        everywhere, places, offsets = shown[0][:], layout.places[first][:], layout.offsets[first][:]
        copied, covered = layout.copied[first], layout.covered[first]
        for number, those in zip(numbers[1:], shown[1:], strict=True):
            for entry, (one, known) in enumerate(zip(those, everywhere, strict=True)):
                if one > known:
                    everywhere[entry] = 1
                    places[entry] = layout.places[number][entry]
                    offsets[entry] = layout.offsets[number][entry]
            copied = array("I", map(max, copied, layout.copied[number]))
            covered = array("Q", map(max, covered, layout.covered[number]))
        return Placed(
            shown=everywhere,
            places=places,
            offsets=offsets,
            copied=copied,
            covered=covered,
            fragments=layout.fragments,
        )


def stitch(
    nodes: Mapping[bytes, NodeLike],
    packs: Sequence[Pack],
    target: int,
    options: StitchOptions,
    *,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> Stitched:
    """Write the image of the tree `nodes` into the empty file open as `target`, and wait until it is on disk.

    `packs[n]` is what nodes with `layer` n refer to. `on_bytes` is called with each number of bytes
    copied. What is copied is not looked at: `proof` does that, when it is read back from the disk. Raises
    PackDamaged when a pack is not what was written, FormatError for what squashfs cannot hold, OSError when
    the file cannot be written.
    """
    job = ImageWriter(nodes, packs, target, options)
    job.bring()
    with (
        _Copier(packs, job.layout, target, on_bytes) as copier,
        Compressors(options.codec, workers=1) as compressors,
    ):
        extra_end = job.write_extra(compressors)
        head, tables = job.tables(extra_end)
        write_at(target, [tables], extra_end)
        write_at(target, [head], 0)
        copier.join()
    os.fsync(target)
    return Stitched(
        size=extra_end + len(tables),
        inode_count=job.inode_count,
        ranges=tuple(job.layout.ranges),
        layout=job.layout,
    )


def require_all(nodes: Mapping[bytes, NodeLike], packs: Sequence[Pack], options: StitchOptions) -> None:
    """Raise what `stitch` would raise for packs that have not all that the tree needs; nothing is written."""
    ImageWriter(nodes, packs, -1, options)


@dataclass(slots=True, kw_only=True)
class _Extra:
    """A file that is packed while stitching, in the shape of a layer's entry."""

    size: int
    path: bytes = b""
    kind: int = Kind.FILE
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    target: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    crc32: int = 0


class ImageWriter:
    """The decisions and the tables of one image."""

    def __init__(
        self, nodes: Mapping[bytes, NodeLike], packs: Sequence[Pack], target: int, options: StitchOptions
    ) -> None:
        for pack in packs:
            if pack.index.header.get("block_size") != options.block_size:
                raise pack.damaged(f"its blocks are not of {options.block_size} bytes", 0)
        self._nodes = nodes
        self._packs = packs
        self._target = target
        self._options = options
        self._compress = options.codec.make_compress()
        self._literals: dict[bytes, bytes] = {}
        self.head_size = -(-(SIZE + len(options_block(options.codec))) // ALIGNMENT) * ALIGNMENT
        self.layout = lay_out(packs, self._contents(), start=self.head_size, block_size=options.block_size)
        self._indexes = [pack.index for pack in packs]
        self._extents: list[list[tuple[int, int]]] = [[] for _ in packs]
        for item in self.layout.ranges:
            self._extents[item.layer].append((item.source, item.length))
        for pack, needed in zip(packs, self._extents, strict=True):
            pack.provide(needed, options.codec)
        self._extra = PackIndex(header={})
        self._extra_numbers: dict[bytes, int] = {}
        self.inode_count = 0

    def bring(self) -> None:
        """Fetch all that is read of the packs, where it lies on another machine."""
        for layer, (pack, needed) in enumerate(zip(self._packs, self._extents, strict=True)):
            pack.bring(needed, [tail.index for tail in self.layout.moved if tail.layer == layer])

    def take(self, nodes: Mapping[bytes, NodeLike], files: PackIndex) -> None:
        """Make `nodes` the tree: of one layer, whose packed content lies in the target from the head on."""
        start, layout = self.head_size, self.layout
        places = files.places[:]
        for number, size in enumerate(files.sizes):
            if size >= self._options.block_size:
                places[number] += start
        layout.places, layout.offsets = [places], [files.details]
        layout.fragments = [
            (start + at, word)
            for at, word in zip(files.fragment_positions, files.fragment_words, strict=True)
        ]
        self._nodes, self._indexes = nodes, [files]

    def _contents(self) -> Iterator[int]:
        sizes, file = [pack.index.sizes for pack in self._packs], Kind.FILE
        for path, node in self._nodes.items():
            entry = node.entry
            if not entry.size or entry.kind != file or node.link_to is not None:
                continue
            layer, index = node.layer, node.index
            if layer < 0:
                self._literals[path] = node.content or b""
                continue
            if layer >= len(sizes) or sizes[layer][index] != entry.size:
                raise FormatError(f"the tree's {os.fsdecode(path)} is not what its layer was packed with")
            yield layer << LAYER_SHIFT | index

    def write_extra(self, compressors: Compressors) -> int:
        """Pack again what must be packed again, after the packs' ranges; returns the offset of its end."""
        layout = self.layout
        position = layout.end

        def write(parts: list[Stored]) -> None:
            nonlocal position
            position += write_at(self._target, parts, position)

        writer = PackWriter(write, compressors, block_size=self._options.block_size, header={})
        tails = TailReader(self._packs, self._options.codec.compressor)
        for tail in layout.moved:
            content = tails.read(tail.layer, tail.index)
            writer.add(_Extra(size=len(content)), lambda _, content=content: content)  # type: ignore[misc]
        for path, content in self._literals.items():
            pieces = memoryview(content)
            self._extra_numbers[path] = writer.add(_Extra(size=len(content)), _reader(pieces))
        extra = self._extra = writer.finish()
        base = len(layout.fragments)
        for number, tail in enumerate(layout.moved):
            layout.places[tail.layer][tail.index] = base + extra.places[number]
            layout.offsets[tail.layer][tail.index] = extra.details[number]
        for content_of, first in layout.followers:
            copy_place(layout, content_of, first)
        layout.fragments += [
            (layout.end + at, word)
            for at, word in zip(extra.fragment_positions, extra.fragment_words, strict=True)
        ]
        self._extra_base = base
        return position

    def _locator(self) -> Locate:
        block_size, places, offsets = self._options.block_size, self.layout.places, self.layout.offsets
        indexes = self._indexes

        def locate(path: bytes, node: NodeLike) -> Place:
            size, layer, number = node.entry.size, node.layer, node.index
            if not size:
                return NOWHERE
            if layer >= 0:
                if size < block_size:
                    return 0, places[layer][number], offsets[layer][number], b"", 0
                index, place, offset = indexes[layer], places[layer][number], 0
            else:
                index, number = self._extra, self._extra_numbers[path]
                place, offset = index.places[number], index.details[number]
                if size < block_size:
                    return 0, place + self._extra_base, offset, b"", 0
                place += self.layout.end
            words = file_words(index, number, block_size)
            return place, NO_FRAGMENT, 0, words.tobytes(), _sparse(words, size, block_size)

        return locate

    def tables(self, start: int) -> tuple[bytes, bytes]:
        """The head of the image up to its first pack, and the tables that begin at `start`, padded."""
        compress, layout, options = self._compress, self.layout, self._options
        tree = TreeWriter(compress, self._locator())
        root = tree.write(self._nodes)
        self.inode_count = tree.inode_count
        inodes, _ = tree.inodes.finish()
        listings, _ = tree.listings.finish()
        parts = [inodes, listings]
        end = start + len(inodes) + len(listings)
        fragments = b"".join([FRAGMENT_ENTRY.pack(at, word, 0) for at, word in layout.fragments])
        fragment_table = ABSENT
        indexes = []
        for entries in (fragments, tree.export_table(), tree.id_table()):
            table, index = indexed_table(entries, end, compress)
            parts.append(table)
            indexes.append(index)
            end += len(table)
        xattrs, xattr_table = tree.xattrs.table(end)
        parts.append(xattrs)
        end += len(xattrs)
        fragment_table, export_table, id_table = indexes
        codec_options = options_block(options.codec)
        superblock = Superblock(
            inode_count=tree.inode_count,
            mkfs_time=options.mkfs_time,
            block_size=options.block_size,
            fragment_count=len(layout.fragments),
            compressor=options.codec.compressor,
            flags=Flags.DUPLICATES
            | Flags.EXPORTABLE
            | (Flags.COMPRESSOR_OPTIONS if codec_options else Flags(0)),
            id_count=len(tree.ids),
            root_inode=root,
            bytes_used=end,
            id_table=id_table,
            xattr_table=xattr_table,
            inode_table=start,
            directory_table=start + len(inodes),
            fragment_table=fragment_table,
            export_table=export_table,
        )
        parts.append(bytes(-end % PAD))
        head = (superblock.to_bytes() + codec_options).ljust(self.head_size, b"\0")
        return head, b"".join(parts)


class _Copier:
    """The thread that copies the packs' ranges while the tables are made."""

    def __init__(
        self, packs: Sequence[Pack], layout: Layout, target: int, on_bytes: Callable[[int], None]
    ) -> None:
        self._packs = packs
        self._layout = layout
        self._target = target
        self._on_bytes = on_bytes
        self._stopped = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="stitch-copy", daemon=True)

    def _run(self) -> None:
        try:
            copy_ranges(self._packs, self._layout.ranges, self._target, lambda: self._stopped, self._on_bytes)
            if not self._stopped:
                os.fdatasync(self._target)  # begins to reach the disk while the tables are still made
        except BaseException as failure:  # noqa: BLE001 - raised again by join
            self._failure = failure

    def join(self) -> None:
        """Wait for the copy; raises what it ended with."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True
        self._thread.join()


def options_block(codec: Codec) -> bytes:
    """The compressor options as an uncompressed metadata block; empty where the format leaves them out."""
    options = codec.options()
    return struct.pack("<H", len(options) | 0x8000) + options if options else b""


def _sparse(words: array[int], size: int, block_size: int) -> int:
    """How many bytes of a file lie in holes."""
    holes = words.count(0) * block_size
    if words[-1] == 0 and size % block_size:
        holes -= block_size - size % block_size
    return holes


def _reader(content: memoryview) -> Callable[[int], bytes]:
    position = 0

    def read(size: int) -> bytes:
        nonlocal position
        data = bytes(content[position : position + size])
        position += len(data)
        return data

    return read
