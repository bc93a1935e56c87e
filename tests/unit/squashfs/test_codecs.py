"""Every compressor that we write, over all block sizes, read back by our reader and by unsquashfs."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, FormatError
from pipeline.squashfs.codecs import Codec, make_expand
from pipeline.squashfs.inode import Kind
from pipeline.squashfs.reader import SquashfsImage
from pipeline.squashfs.superblock import Compressor
from tests.support.images.squashfs import Stitcher

CODECS = [
    Codec(compressor=Compressor.ZSTD, level=1),
    Codec(compressor=Compressor.ZSTD, level=15),
    Codec(compressor=Compressor.ZSTD, level=19),
    Codec(compressor=Compressor.GZIP, level=9),
    Codec(compressor=Compressor.GZIP, level=1),
    Codec(compressor=Compressor.LZ4, level=0),
    Codec(compressor=Compressor.LZ4, level=1),
]


def needs(codec: Codec) -> None:
    if codec.compressor is Compressor.LZ4:
        pytest.importorskip("lz4")


@pytest.mark.parametrize("block_size", [4096, 131072, 1 << 20])
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: f"{codec.compressor.name}-{codec.level}")
def test_what_is_written_is_read(tmp_path: Path, codec: Codec, block_size: int) -> None:
    needs(codec)
    rng = random.Random(1)
    contents = {
        b"noise": rng.randbytes(block_size + 3),
        b"text": b"text " * (block_size // 2),
        b"small": b"small",
        b"none": b"",
        b"zero": bytes(2 * block_size + 1),
    }
    stitcher = Stitcher(tmp_path, block_size=block_size, codec=codec)
    for name, content in contents.items():
        stitcher.file(name, content)
    path = stitcher.stitch(workers=2)
    with SquashfsImage.open(path) as image:
        found = {name: image.read(inode) for name, inode in image.walk() if inode.kind is Kind.FILE}
        assert image.superblock.compressor is codec.compressor
    assert found == contents
    if shutil.which("unsquashfs"):
        said = subprocess.run(
            ["unsquashfs", "-cat", path, "noise"], check=True, capture_output=True, timeout=60
        )
        assert said.stdout == contents[b"noise"]


@pytest.mark.parametrize("compressor", [Compressor.LZO, Compressor.LZMA])
def test_what_we_cannot_read_is_reported(compressor: Compressor) -> None:
    with pytest.raises(FormatError, match=compressor.name.lower()):
        make_expand(compressor)


@pytest.mark.parametrize(
    ("compressor", "level"),
    [(Compressor.ZSTD, 0), (Compressor.ZSTD, 23), (Compressor.GZIP, 10), (Compressor.XZ, 1)],
)
def test_levels_that_do_not_exist(compressor: Compressor, level: int) -> None:
    with pytest.raises(ConfigError):
        Codec(compressor=compressor, level=level)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: f"{codec.compressor.name}-{codec.level}")
def test_a_block_that_expands_to_more_than_allowed_is_refused(codec: Codec) -> None:
    needs(codec)
    packed = codec.make_compress()(bytes(100_000))
    with pytest.raises(FormatError):
        make_expand(codec.compressor)(packed, 4096)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: f"{codec.compressor.name}-{codec.level}")
def test_many_blocks_at_once_are_compressed_as_one_by_one(codec: Codec) -> None:
    needs(codec)
    blocks = [b"x" * 5000, bytes(range(256)) * 20, b"y"]
    one = codec.make_compress()
    assert [bytes(block) for block in codec.make_compress_many()(blocks)] == [one(block) for block in blocks]
