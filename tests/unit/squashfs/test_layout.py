"""Which bytes of packs go into an image, and how they get there."""

from __future__ import annotations

import errno
import hashlib
import os
import random
from pathlib import Path

import pytest

from pipeline.config.types import ConvertOptions
from pipeline.convert.native import convert_native
from pipeline.convert.packing import pack_cache
from pipeline.oci.layout import open_layout
from pipeline.oci.platform import Platform
from pipeline.squashfs import copying
from pipeline.squashfs.inode import Kind
from pipeline.squashfs.layout import ALIGNMENT, Range, content_number, lay_out, split_number
from pipeline.squashfs.pack import Pack
from pipeline.squashfs.reader import SquashfsImage
from tests.support.images.layers import LayerBuilder, write_layout

BLOCK = 4096


def build(tmp_path: Path, *layers: LayerBuilder) -> Path:
    write_layout(tmp_path / "image", layers)
    source = open_layout(tmp_path / "image", platform=Platform(os="linux", architecture="amd64"))
    output = tmp_path / "out.sqsh"
    convert_native(source, ConvertOptions(block_size=BLOCK), output=output, cache=tmp_path / "cache")
    return output


def pack_of(tmp_path: Path, layer: LayerBuilder) -> Pack:
    build(tmp_path, layer)
    [pack] = pack_cache(tmp_path / "cache").packs()
    return Pack.open(pack.path)


def everything(pack: Pack) -> list[int]:
    index = pack.index
    return [
        content_number(0, number)
        for number in range(len(index))
        if index.kinds[number] == Kind.FILE and index.sizes[number]
    ]


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def test_a_whole_pack_is_one_range(tmp_path: Path) -> None:
    layer = LayerBuilder()
    for number in range(60):
        layer.file(f"{number:03}", noise(number * 700 + 1, number))
    with pack_of(tmp_path, layer) as pack:
        layout = lay_out([pack], everything(pack), start=4096, block_size=BLOCK)
        assert layout.ranges == [Range(0, 0, pack.data_size, 4096)]
        assert layout.moved == []
        assert len(layout.fragments) == len(pack.index.fragment_sizes)


def test_a_hidden_file_is_cut_out_and_the_rest_stays_aligned(tmp_path: Path) -> None:
    layer = LayerBuilder().file("a", noise(200_001, 1)).file("b", noise(5000, 2)).file("c", noise(200_001, 3))
    with pack_of(tmp_path, layer) as pack:
        layout = lay_out([pack], [content_number(0, 0), content_number(0, 2)], start=4096, block_size=BLOCK)
        first, second = layout.ranges
        assert first.source + first.length < second.source
        assert all((item.target - item.source) % ALIGNMENT == 0 for item in layout.ranges)
        assert first.target + first.length <= second.target < first.target + first.length + ALIGNMENT
        assert layout.places[0][2] == second.target + pack.index.places[2] - second.source


def test_a_fragment_with_a_hidden_tail_is_not_copied(tmp_path: Path) -> None:
    layer = LayerBuilder().file("kept", b"kept" * 50).file("hidden", b"hide" * 50).file("also", b"also" * 50)
    with pack_of(tmp_path, layer) as pack:
        layout = lay_out([pack], [content_number(0, 0), content_number(0, 2)], start=4096, block_size=BLOCK)
        assert layout.ranges == []
        assert [(tail.layer, tail.index) for tail in layout.moved] == [(0, 0), (0, 2)]


def test_a_fragment_whose_other_tails_are_elsewhere_is_copied(tmp_path: Path) -> None:
    """A tail that a lower layer has too is no secret: a few of them are not worth packing anew."""
    shared = LayerBuilder().file("shared", b"s" * 100)
    upper = LayerBuilder().file("again", b"s" * 100)
    for number in range(30):
        upper.file(f"own-{number:02}", noise(120, number))
    output = build(tmp_path, shared, upper)
    with SquashfsImage.open(output) as image:
        inodes = dict(image.walk())
        assert (inodes[b"again"].fragment, inodes[b"again"].offset) == (
            inodes[b"shared"].fragment,
            inodes[b"shared"].offset,
        )
        assert inodes[b"own-00"].fragment == inodes[b"own-29"].fragment != inodes[b"etc/rc"].fragment
        assert image.read(inodes[b"own-17"]) == noise(120, 17)


def test_a_fragment_with_a_tail_that_only_another_layer_shows_is_not_copied(tmp_path: Path) -> None:
    """What decides must be known wherever the pack comes from: of hidden files a release keeps no content."""
    lower, upper = LayerBuilder(), LayerBuilder().file("own-00", noise(120, 0), mode=0o700)
    for number in range(30):
        lower.file(f"own-{number:02}", noise(120, number))
    output = build(tmp_path, lower, upper)
    with SquashfsImage.open(output) as image:
        inodes = dict(image.walk())
        assert inodes[b"own-01"].fragment == inodes[b"own-29"].fragment == inodes[b"etc/rc"].fragment
        assert inodes[b"own-00"].fragment != inodes[b"own-01"].fragment
        assert image.read(inodes[b"own-17"]) == noise(120, 17)


def test_content_numbers_sort_by_layer_and_entry() -> None:
    numbers = [(0, 0), (0, 5), (1, 0), (3, 1 << 30)]
    assert [split_number(content_number(*pair)) for pair in numbers] == numbers
    assert sorted(content_number(*pair) for pair in reversed(numbers)) == [
        content_number(*pair) for pair in numbers
    ]


@pytest.mark.parametrize("error", [errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP])
def test_where_the_kernel_cannot_copy_it_is_done_plainly(
    tmp_path: Path, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [LayerBuilder().file("a", noise(3_000_000)), LayerBuilder().file("b", noise(70_000, 1))]
    want = hashlib.sha256(build(tmp_path, *layers).read_bytes()).digest()

    def refuse(*_args: object, **_more: object) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(copying.os, "copy_file_range", refuse)
    assert hashlib.sha256(build(tmp_path, *layers).read_bytes()).digest() == want


def test_a_copy_in_small_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may copy less than asked for."""
    layer = LayerBuilder().file("a", noise(300_000))
    want = build(tmp_path, layer).read_bytes()
    real = os.copy_file_range
    monkeypatch.setattr(
        copying.os,
        "copy_file_range",
        lambda source, target, count, **more: real(source, target, min(count, 1000), **more),
    )
    assert build(tmp_path, layer).read_bytes() == want
