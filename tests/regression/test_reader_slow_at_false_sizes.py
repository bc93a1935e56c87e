"""Small .sqsh files that took hours or gigabytes to read, and one whose hard links were not all compared."""

from __future__ import annotations

import dataclasses
import os
import struct
import time
import zlib
from pathlib import Path

import pytest

from pipeline.config.types import ConvertOptions
from pipeline.convert.convert import SquashfsFile, convert
from pipeline.convert.verify import verify
from pipeline.errors import FormatError, VerificationError
from pipeline.squashfs.metadata import MetadataWriter, read_indexed
from pipeline.squashfs.reader import SquashfsImage
from pipeline.squashfs.superblock import METADATA_SIZE, Superblock
from pipeline.squashfs.xattr import XattrReader
from tests.support.images.images import image
from tests.support.images.layers import LayerBuilder
from tests.support.images.squashfs import Stitcher

BLOCK = 4096


def plain(data: bytes, _limit: int = 0) -> bytes:
    return data


def stored(tmp_path: Path, data: bytes) -> int:
    (tmp_path / "table").write_bytes(data)
    return os.open(tmp_path / "table", os.O_RDONLY)


def test_a_table_of_one_block_many_times(tmp_path: Path) -> None:
    """Sixteen kilobytes of index would have become sixteen megabytes of table, and so on."""
    writer = MetadataWriter(plain)
    writer.write(bytes(METADATA_SIZE))
    block, _ = writer.finish()
    count = 2000
    table = stored(tmp_path, block + struct.pack("<Q", 0) * count)
    entries = count * METADATA_SIZE // 16
    with pytest.raises(FormatError, match="not in one piece"):
        read_indexed(table, len(block), entries, 16, plain, end=len(block) + 8 * count, name="x")
    os.close(table)


def test_more_fragments_than_bytes(tmp_path: Path) -> None:
    good = Stitcher(tmp_path, block_size=BLOCK).file(b"a", b"1").stitch().read_bytes()
    raw = bytearray(good)
    raw[16:20] = struct.pack("<I", len(good))
    with pytest.raises(FormatError, match="more fragments than bytes"):
        Superblock.parse(bytes(raw), file_size=len(raw), name="x")


def test_attributes_that_all_lead_to_one_value(tmp_path: Path) -> None:
    """4,000 attributes of 64 KiB in 66 KiB of table: 260 MB for one inode, and so on for each set."""
    value = struct.pack("<I", 65536) + bytes(65536)
    pairs = struct.pack("<HH", 0x100, 1) + b"a" + struct.pack("<I", 8) + bytes(8)
    count = 4200
    table, blocks = MetadataWriter(plain), MetadataWriter(plain)
    table.write(value + pairs * count)
    bodies, starts = table.finish()
    place = len(value)
    reference = starts[place // METADATA_SIZE] << 16 | place % METADATA_SIZE
    blocks.write(struct.pack("<QII", reference, count, 0))
    ids, _ = blocks.finish()
    head = len(bodies) + len(ids)
    data = bodies + ids + struct.pack("<QII", 0, 1, 0) + struct.pack("<Q", len(bodies))
    descriptor = stored(tmp_path, data)
    superblock = Superblock.parse(
        Stitcher(tmp_path, block_size=BLOCK).file(b"a").stitch().read_bytes(), file_size=1 << 20, name="x"
    )
    object.__setattr__(superblock, "xattr_table", head)
    object.__setattr__(superblock, "bytes_used", len(data))
    with pytest.raises(FormatError, match="bytes of extended attributes"):
        XattrReader(descriptor, superblock, plain, "x").get(0)
    os.close(descriptor)


def file_of(path: Path, stitcher: Stitcher, tmp_path: Path) -> SquashfsFile:
    """What `verify` takes, for a file that was stitched without an image."""
    made = convert(
        image(tmp_path / "image", [LayerBuilder().file("bin/sh", mode=0o755)]),
        ConvertOptions(converter="native", block_size=BLOCK),
        output=tmp_path / "image.sqsh",
        scratch=tmp_path / "scratch",
        cache=tmp_path / "cache",
    )
    return dataclasses.replace(made, path=path, size=path.stat().st_size, tree=stitcher.tree())


def test_a_hole_of_terabytes_is_not_read_to_be_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """verify read every file to its end, also one that was a difference by its size already."""
    stitcher = Stitcher(tmp_path, block_size=BLOCK, raw_tables=True).file(b"hole", bytes(64 * BLOCK))
    path = stitcher.stitch()
    with SquashfsImage.open(path) as opened:
        assert opened.lookup(b"hole").words == bytes(4 * 64)
    tree = Stitcher(tmp_path / "other", block_size=BLOCK).file(b"hole", b"small")
    seen = file_of(path, tree, tmp_path)
    read: list[int] = []

    def watched(_image: object, _on_file: object, *, workers: int, inodes: list[object]) -> int:
        read.append(len(inodes))
        return 0

    monkeypatch.setattr("pipeline.convert.verify.read_all", watched)
    with pytest.raises(VerificationError, match="size 262144, should be 5"):
        verify(seen)
    assert read == [0]


def test_two_inodes_with_one_number_are_no_hard_links(tmp_path: Path) -> None:
    """The content of one of them was compared, and a mount could show the other."""
    stitcher = Stitcher(tmp_path, block_size=BLOCK, raw_tables=True)
    path = stitcher.file(b"a", b"good").file(b"b", b"evil").stitch()
    with SquashfsImage.open(path) as opened:
        first, second = opened.lookup(b"a"), opened.lookup(b"b")
        table = opened.superblock.inode_table
    data = bytearray(path.read_bytes())
    place = table + 2 + (second.reference & 0xFFFF) + 12
    assert data[place : place + 4] == struct.pack("<I", second.number)
    data[place : place + 4] = struct.pack("<I", first.number)
    entry = struct.pack("<hHH", second.number - first.number, 2, 0) + b"b"
    at = bytes(data).index(entry, table)
    data[at : at + 2] = bytes(2)  # the listing's number, as a difference to the first
    path.write_bytes(data)
    linked = Stitcher(tmp_path / "other", block_size=BLOCK).file(b"a", b"good").link(b"b", b"a")
    assert zlib.crc32(b"good") != zlib.crc32(b"evil")
    with pytest.raises(VerificationError, match="/b: hard links differ"):
        verify(file_of(path, linked, tmp_path))


def test_names_of_one_inode_share_what_is_read_of_it(tmp_path: Path) -> None:
    """A file of many blocks with many names: its words are held once."""
    stitcher = Stitcher(tmp_path, block_size=BLOCK).file(b"big", bytes(3000 * BLOCK))
    for number in range(200):
        stitcher.link(b"l%d" % number, b"big")
    started = time.process_time()
    with SquashfsImage.open(stitcher.stitch()) as opened:
        inodes = [inode for _, inode in opened.walk() if inode.words]
    assert len(inodes) == 201
    assert len({id(inode) for inode in inodes}) == 1
    assert time.process_time() - started < 30
