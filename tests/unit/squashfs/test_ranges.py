"""The ranges of a .sqsh: what they say is so, what they may not say, and what two files have in common."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.types import ConvertOptions
from pipeline.convert.interface import Converted
from pipeline.convert.native import convert_native
from pipeline.convert.packing import pack_cache
from pipeline.errors import FormatError
from pipeline.oci.layout import open_layout
from pipeline.oci.platform import Platform
from pipeline.squashfs.layout import Range
from pipeline.squashfs.ranges import PackRanges, of_layers, pieces
from tests.support.layers import LayerBuilder, write_layout

KEY, OTHER = "a" * 64, "b" * 64
SOUND: dict[str, Any] = {
    "schema": 1,
    "size": 20000,
    "packs": [[KEY, 9000], [OTHER, 5000]],
    "ranges": [[0, 0, 4096, 4000], [0, 5000, 8096, 4000], [1, 0, 12288, 5000]],
}


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def files(prefix: str, count: int, *, seed: int = 0, size: int = 30_000) -> LayerBuilder:
    layer = LayerBuilder()
    for number in range(count):
        layer.file(f"{prefix}/{number:03}", noise(size + number * 997, seed * 1000 + number))
    return layer


def build(tmp_path: Path, name: str, *layers: LayerBuilder) -> tuple[Path, Converted]:
    write_layout(tmp_path / f"{name}-image", layers)
    source = open_layout(tmp_path / f"{name}-image", platform=Platform(os="linux", architecture="amd64"))
    output = tmp_path / f"{name}.sqsh"
    options = ConvertOptions(block_size=4096)
    return output, convert_native(source, options, output=output, cache=tmp_path / "cache")


def ranges_of(made: Converted) -> PackRanges:
    assert made.ranges is not None
    assert PackRanges.decode(made.ranges.encode()) == made.ranges
    return made.ranges


def put_together(
    wanted: Path, ranges: PackRanges, held: Sequence[tuple[Path, PackRanges]]
) -> tuple[bytes, int]:
    """The wanted file out of the held ones, and how many bytes had to be read from itself."""
    target, own = b"", 0
    for piece in pieces(ranges, [each for _, each in held]):
        file = wanted if piece.held is None else held[piece.held][0]
        assert piece.target == len(target)
        target += file.read_bytes()[piece.source : piece.source + piece.length]
        own += piece.length if piece.held is None else 0
    return target, own


def test_what_they_say_is_in_the_packs(tmp_path: Path) -> None:
    hiding = files("c", 3, seed=3).whiteout("a/001").file("a/002", b"other")
    output, made = build(tmp_path, "one", files("a", 40), files("b", 20, seed=2), hiding)
    ranges, data = ranges_of(made), output.read_bytes()
    assert ranges.size == len(data)
    folder = pack_cache(tmp_path / "cache").folder
    assert len(ranges.ranges) > 3, "something was cut out"
    for item in ranges.ranges:
        key, size = ranges.packs[item.layer]
        pack = (folder / f"{key}.pack").read_bytes()
        assert item.source + item.length <= size
        assert data[item.target : item.target + item.length] == pack[item.source : item.source + item.length]


def test_a_layer_that_is_there_twice_is_one_pack(tmp_path: Path) -> None:
    layer = files("a", 10)
    _, made = build(tmp_path, "one", layer, files("b", 1, seed=4), layer)
    assert len(ranges_of(made).packs) == 2


@pytest.mark.parametrize("changed", [0, 1, 2], ids=["base", "middle", "top"])
def test_a_file_is_put_together_from_the_version_before(tmp_path: Path, changed: int) -> None:
    layers = [files("a", 40), files("b", 30, seed=2), files("c", 20, seed=3).whiteout("a/003")]
    old, old_made = build(tmp_path, "old", *layers)
    layers[changed] = files("d", 5, seed=9)
    new, new_made = build(tmp_path, "new", *layers)
    wanted = ranges_of(new_made)
    target, own = put_together(new, wanted, [(old, ranges_of(old_made))])
    assert target == new.read_bytes()
    keys = set(wanted.keys) - set(ranges_of(old_made).keys)
    fresh = sum(item.length for item in wanted.ranges if wanted.packs[item.layer][0] in keys)
    behind = wanted.size - wanted.ranges[-1].target - wanted.ranges[-1].length
    # A file that the older version hid is not in it.
    assert own <= fresh + behind + 4096 * len(wanted.ranges) + 80_000


def test_several_versions_together_have_more_than_each(tmp_path: Path) -> None:
    one, two, three = files("a", 20), files("b", 20, seed=2), files("c", 20, seed=3)
    first, first_made = build(tmp_path, "first", one)
    second, second_made = build(tmp_path, "second", two)
    new, new_made = build(tmp_path, "new", one, two, three)
    held = [(first, ranges_of(first_made)), (second, ranges_of(second_made))]
    target, own = put_together(new, ranges_of(new_made), held)
    assert target == new.read_bytes()
    alone = [put_together(new, ranges_of(new_made), [each])[1] for each in held]
    assert own < min(alone) - 400_000


def test_short_pieces_can_be_left_out(tmp_path: Path) -> None:
    _, old_made = build(tmp_path, "old", files("a", 10))
    _, new_made = build(tmp_path, "new", files("a", 10), files("b", 10, seed=2))
    wanted, held = ranges_of(new_made), ranges_of(old_made)
    assert [piece.held for piece in pieces(wanted, [held], shortest=1 << 30)] == [None]


@pytest.mark.parametrize("seed", range(40))
def test_any_two_files_of_one_pack(seed: int) -> None:
    """Made-up files that have pieces of a pack at any places."""
    rng = random.Random(seed)
    data = rng.randbytes(60_000)

    def cut() -> tuple[bytes, PackRanges]:
        borders = sorted(rng.sample(range(len(data)), 2 * rng.randrange(1, 12)))
        runs = list(zip(borders[::2], borders[1::2], strict=True))
        if rng.random() < 0.5:
            rng.shuffle(runs)
        file, found = b"head", []
        for begin, end in runs:
            file += bytes(rng.choice((0, 0, 7, 100)))
            found.append(Range(0, begin, end - begin, len(file)))
            file += data[begin:end]
        file += rng.randbytes(rng.randrange(50))
        ranges = of_layers(len(file), [(KEY, len(data))], found)
        assert ranges is not None
        return file, ranges

    (wanted, ranges), *held = (cut() for _ in range(3))
    target = b""
    for piece in pieces(ranges, [each for _, each in held]):
        file = wanted if piece.held is None else held[piece.held][0]
        assert piece.target == len(target)
        target += file[piece.source : piece.source + piece.length]
    assert target == wanted


def test_sound_ones_are_read() -> None:
    found = PackRanges.decode(json.dumps(SOUND).encode())
    assert found.keys == (KEY, OTHER)
    assert found.ranges[1] == Range(0, 5000, 4000, 8096)


@pytest.mark.parametrize(
    "changed",
    [
        {"schema": 2},
        {"size": 17000},
        {"size": -1},
        {"size": 2.5},
        {"size": True},
        {"packs": [[KEY, 9000], [KEY, 5000]]},
        {"packs": [[KEY, 8999], [OTHER, 5000]]},
        {"packs": [["../../etc/passwd", 9000], [OTHER, 5000]]},
        {"packs": [[KEY, 1 << 70], [OTHER, 5000]]},
        {"packs": [[KEY, 9000]]},
        {"ranges": [[0, 0, 4096, 0]]},
        {"ranges": [[0, 0, 4096, -5]]},
        {"ranges": [[0, -1, 4096, 5]]},
        {"ranges": [[0, 0, 4096, 1 << 64]]},
        {"ranges": [[0, 0, 8096, 100], [0, 500, 4096, 100]]},
        {"ranges": [[0, 0, 4096, 100], [0, 500, 4195, 100]]},
        {"ranges": [[0, 0, 4096, 100], [0, 99, 8096, 100]]},
        {"ranges": [[0, 0, 4096]]},
        {"ranges": {"0": 1}},
        {"ranges": [[0, 0, 0, 1]] * 70_000},
    ],
)
def test_what_is_not_possible_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="ranges"):
        PackRanges.decode(json.dumps(SOUND | changed).encode())


@pytest.mark.parametrize("stored", [b"", b"[]", b"\xff", b"[" * 100_000, b" " * (5 << 20)])
def test_what_is_not_json_is_refused(stored: bytes) -> None:
    with pytest.raises(FormatError, match="ranges"):
        PackRanges.decode(stored)
