"""Inodes and listings at the format's borders, written by us and read back by us."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.errors import FormatError
from pipeline.oci.entry import Entry, EntryKind
from pipeline.oci.tree import Node, Tree
from pipeline.squashfs.codecs import Codec, make_expand
from pipeline.squashfs.directory import ListingWriter, read_listing
from pipeline.squashfs.inode import NO_FRAGMENT, InodeParser, device_number
from pipeline.squashfs.metadata import MetadataReader, MetadataWriter, indexed_table, read_indexed
from pipeline.squashfs.superblock import METADATA_SIZE, Compressor
from pipeline.squashfs.tree import NOWHERE, Place, TreeWriter
from pipeline.squashfs.xattr import XattrWriter

COMPRESS = Codec().make_compress()


def reader(tmp_path: Path, data: bytes) -> MetadataReader:
    path = tmp_path / "table"
    path.write_bytes(data)
    descriptor = os.open(path, os.O_RDONLY)
    return MetadataReader(descriptor, 0, len(data), make_expand(Compressor.ZSTD), "table")


def tree_of(*entries: Entry) -> Tree:
    nodes = {b"": Node(Entry(b"", EntryKind.DIRECTORY))}
    nodes |= {entry.path: Node(entry, 0, number) for number, entry in enumerate(entries)}
    return Tree(nodes)


def written(tree: Tree, place: Place = NOWHERE) -> TreeWriter:
    writer = TreeWriter(COMPRESS, lambda _path, _node: place)
    writer.write(tree)
    return writer


@pytest.mark.parametrize("size", [1, METADATA_SIZE - 1, METADATA_SIZE, METADATA_SIZE + 1, 3 * METADATA_SIZE])
def test_metadata_over_block_borders(tmp_path: Path, size: int) -> None:
    data = bytes(number * 7 % 251 for number in range(size))
    writer = MetadataWriter(COMPRESS)
    places = []
    for at in range(0, size, 100):
        places.append((writer.position, data[at : at + 100]))
        writer.write(data[at : at + 100])
    stored, starts = writer.finish()
    table = reader(tmp_path, stored)
    assert len(starts) == -(-size // METADATA_SIZE)
    for (position, offset), want in places:
        assert table.read(position, offset, len(want)) == want
    with pytest.raises(FormatError):
        table.read(0, 0, size + 1)


@pytest.mark.parametrize("count", [0, 1, 512, 513, 5000])
def test_indexed_tables(tmp_path: Path, count: int) -> None:
    entries = os.urandom(16 * count)
    data, index = indexed_table(entries, 10, COMPRESS)
    path = tmp_path / "file"
    path.write_bytes(bytes(10) + data)
    descriptor = os.open(path, os.O_RDONLY)
    expand = make_expand(Compressor.ZSTD)
    assert read_indexed(descriptor, index, count, 16, expand, end=10 + len(data), name="t") == entries
    with pytest.raises(FormatError):
        read_indexed(descriptor, index, count + 2000, 16, expand, end=10 + len(data), name="t")
    os.close(descriptor)


@pytest.mark.parametrize("count", [1, 255, 256, 257, 5000])
@pytest.mark.parametrize("spread", [1, 40_000])
def test_listings_of_many_runs(tmp_path: Path, count: int, spread: int) -> None:
    """Runs end at 256 names, at other inode blocks, at numbers too far apart and at metadata borders."""
    writer = MetadataWriter(COMPRESS)
    writer.write(b"before" * 30)
    listing = ListingWriter(writer)
    want = []
    for number in range(count):
        name = b"%06d" % number + b"x" * (number % 50)
        listing.add([(name, (2, number // 300 * 5000, number % 300 * 20, 1 + number * spread))])
        want.append((name, number // 300 * 5000 << 16 | number % 300 * 20, 1 + number * spread))
    size, index = listing.finish()
    stored, _ = writer.finish()
    table = reader(tmp_path, stored)
    assert list(read_listing(table, *listing.start, size)) == want
    for raw in index:  # from each place that the index names, the rest of the listing can be read
        at, start, length = (int.from_bytes(raw[part : part + 4], "little") for part in (0, 4, 8))
        offset = (listing.start[1] + at) % METADATA_SIZE
        rest = list(read_listing(table, start, offset, size - at))
        assert rest[0][0] == raw[12:]
        assert len(raw[12:]) == length + 1
        assert rest == want[-len(rest) :]
    assert bool(index) == (180 + size > METADATA_SIZE)


@pytest.mark.parametrize("start", [0, (1 << 32) - 1, 1 << 32, 1 << 40])
@pytest.mark.parametrize("size", [5, (1 << 32) - 1, 1 << 32])
def test_positions_and_sizes_of_more_than_32_bits(tmp_path: Path, start: int, size: int) -> None:
    entry = Entry(b"f", EntryKind.FILE, 0o640, mtime=7, size=size)
    blocks = -(-size // (1 << 20))
    writer = written(tree_of(entry), (start, NO_FRAGMENT, 0, bytes(4 * blocks), 0))
    stored, _ = writer.inodes.finish()
    inode = InodeParser(reader(tmp_path, stored), (0,), 1 << 20, 2).read(0)
    assert (inode.start, inode.size, inode.mode, inode.mtime) == (start, size, 0o640, 7)
    assert len(inode.words) == 4 * blocks


def test_more_owners_than_squashfs_has() -> None:
    entries = [Entry(b"%06d" % number, EntryKind.FIFO, uid=number) for number in range(65_535)]
    assert len(written(tree_of(*entries)).ids) == 65_535
    entries.append(Entry(b"one-more", EntryKind.FIFO, uid=65_535))
    with pytest.raises(FormatError, match="owners"):
        written(tree_of(*entries))


def test_times_beyond_32_bits_are_brought_within(tmp_path: Path) -> None:
    writer = written(tree_of(Entry(b"f", EntryKind.FIFO, mtime=1 << 40)))
    stored, _ = writer.inodes.finish()
    assert InodeParser(reader(tmp_path, stored), (0,), 4096, 2).read(0).mtime == (1 << 32) - 1


@pytest.mark.parametrize(
    "entry",
    [
        Entry(b"n" * 256, EntryKind.FIFO),
        Entry(b"missing/parent", EntryKind.FIFO),
        Entry(b"l", EntryKind.SYMLINK, target=b""),
        Entry(b"l", EntryKind.SYMLINK, target=b"t" * 65_537),
        Entry(b"d", EntryKind.CHAR, major=1 << 12),
        Entry(b"x", EntryKind.FIFO, xattrs=((b"system.posix_acl_access", b"1"),)),
        Entry(b"x", EntryKind.FIFO, xattrs=((b"user.big", bytes(65_537)),)),
    ],
    ids=lambda entry: entry.kind.name + str(len(entry.path)),
)
def test_what_squashfs_cannot_hold(entry: Entry) -> None:
    with pytest.raises(FormatError):
        written(tree_of(entry))


@pytest.mark.parametrize("numbers", [(0, 0), (1, 3), (4095, (1 << 20) - 1), (259, 70_000)])
def test_device_numbers(numbers: tuple[int, int]) -> None:
    major, minor = numbers
    word = device_number(major, minor)
    assert (word >> 8 & 0xFFF, word & 0xFF | word >> 12 & 0xFFF00) == numbers


def test_xattr_sets_are_shared() -> None:
    writer = XattrWriter(COMPRESS)
    first = writer.add(((b"user.a", b"1"), (b"user.b", b"2")))
    assert writer.add(((b"user.c", b"1"),)) != first
    assert writer.add(((b"user.a", b"1"), (b"user.b", b"2"))) == first


def test_a_tree_without_a_root() -> None:
    with pytest.raises(FormatError, match="root"):
        written(Tree({}))
    with pytest.raises(FormatError, match="root"):
        written(Tree({b"": Node(Entry(b"", EntryKind.FIFO))}))
