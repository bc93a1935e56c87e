"""Which bytes of packs go into an image, and how they get there."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


class Held:
    """A pack in a file of its own; one whose bytes lie in that file from position 100 on."""

    def __init__(self, file: int) -> None:
        self._file = file

    def where(self, position: int, length: int) -> Iterator[tuple[int, int, int]]:
        yield self._file, 100 + position, length

    def unreadable(self, error: OSError, position: int) -> Exception:
        return ValueError(position, error.errno)


def copied(folder: Path, ranges: list[Range], size: int) -> tuple[bytes, bytes, list[int]]:
    """What the pack has, what the target then has, and the bytes of each piece."""
    content, lengths = noise(size), list[int]()
    with (folder / "pack").open("w+b") as pack, (folder / "target").open("w+b") as target:
        pack.write(bytes(100) + content)
        pack.flush()
        packs: Any = [Held(pack.fileno())]
        copying.copy_ranges(packs, ranges, target.fileno(), lambda: False, lengths.append)
        target.seek(0)
        return content, target.read(), lengths


def test_pieces_end_on_borders_of_blocks_and_are_reported_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A border inside of a block would cost that block twice where the rest of a piece is cloned."""
    monkeypatch.setattr(copying, "_MOST", 4 * ALIGNMENT)
    content, made, lengths = copied(
        tmp_path, [Range(0, 0, 50_000, 0), Range(0, 60_000, 20_000, 53_248)], 80_000
    )
    assert made[:50_000] == content[:50_000]
    assert made[53_248:] == content[60_000:]
    assert lengths[:3] == [4 * ALIGNMENT - 100, 4 * ALIGNMENT, 4 * ALIGNMENT]
    assert sum(lengths) == 70_000


def test_several_pieces_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is far away takes as long for each read, so one after the other takes a minute."""
    monkeypatch.setattr(copying, "_MOST", ALIGNMENT)
    all_are_here, real = threading.Barrier(copying._AT_ONCE), copying.copy_range

    def late(*args: Any, **more: Any) -> bool:
        all_are_here.wait(timeout=20)
        return real(*args, **more)

    monkeypatch.setattr(copying, "copy_range", late)
    size = copying._AT_ONCE * ALIGNMENT - 100
    content, made, _ = copied(tmp_path, [Range(0, 0, size, 0)], size)
    assert made == content


def test_the_pack_learns_where_it_could_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "_MOST", ALIGNMENT)
    real = copying.copy_range

    def failing(source: int, target: int, item: Range, *args: Any, **more: Any) -> bool:
        if item.source == 3 * ALIGNMENT:
            raise OSError(errno.ESTALE, "stale")
        return real(source, target, item, *args, **more)

    monkeypatch.setattr(copying, "copy_range", failing)
    with pytest.raises(ValueError, match=rf"{3 * ALIGNMENT - 100}, {errno.ESTALE}"):
        copied(tmp_path, [Range(0, 0, 100_000, 0)], 100_000)
