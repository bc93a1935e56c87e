"""The quick check of stitched files finds whatever the complete one finds, and nothing else."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import struct
import subprocess
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from pipeline.config.types import ConvertOptions
from pipeline.convert import native
from pipeline.convert.convert import SquashfsFile, convert
from pipeline.convert.packing import Packing, codec_of, pack_cache
from pipeline.convert.verify import CHECKS, QUICK_CHECKS, verify
from pipeline.errors import FormatError, VerificationError
from pipeline.oci.entry import DEFAULT_LIMITS
from pipeline.oci.source import ImageSource
from pipeline.progress import NO_TASK
from pipeline.squashfs import cache as packs_cache
from pipeline.squashfs import proof
from pipeline.squashfs import stitch as stitching
from pipeline.squashfs.blocks import RAW
from pipeline.squashfs.codecs import Codec
from pipeline.squashfs.layout import Layout, Range, copy_place
from pipeline.squashfs.pack import Pack, PackDamaged
from pipeline.squashfs.proof import ReadBack, read_back
from pipeline.squashfs.stitch import Stitched, StitchOptions
from pipeline.squashfs.superblock import Superblock
from tests.support.images.images import image
from tests.support.images.layers import LayerBuilder

BLOCK = 4096
OPTIONS = ConvertOptions(converter="native", block_size=BLOCK)


def layers() -> list[LayerBuilder]:
    """Blocks, holes, tails, duplicates within and across layers, hidden tails, so that others are moved."""
    noise = random.Random(3).randbytes
    shared, half, tails = noise(3 * BLOCK + 700), noise(BLOCK), [noise(900) for _ in range(16)]
    base = LayerBuilder().dir("bin").file("bin/sh", b"#!/bin/true\n", mode=0o755)
    base.file("big", shared).file("same", shared).file("zeros", bytes(2 * BLOCK))
    base.file("holes", half + bytes(BLOCK) + half + bytes(100)).hardlink("link", "big").symlink("to", "big")
    for number, tail in enumerate(tails):
        base.file(f"tail-{number}", tail)
    upper = LayerBuilder().file("again", shared).file("once", noise(2 * BLOCK)).whiteout("tail-1")
    upper.file("tail-again", tails[2]).file("far-tail", tails[9]).file("half", half + half)
    for number in range(6):
        upper.file(f"small-{number}", b"%d" % number * 300).file(
            f"text-{number}", b"text %d\n" % number * 900
        )
    top = LayerBuilder().file("last", shared).whiteout("small-3").file("more", tails[2][:500] + tails[3])
    return [base, upper, top]


class Trial:
    """Packs and the tree of one image, to be stitched and checked many times."""

    def __init__(self, folder: Path, opened: contextlib.ExitStack) -> None:
        source = image(folder / "image", layers())
        places = {"output": folder / "made.sqsh", "scratch": folder / "scratch", "cache": folder / "cache"}
        self.made = convert(source, OPTIONS, **places)
        packing = Packing(
            source=source,
            options=OPTIONS,
            codec=codec_of(OPTIONS),
            cache=pack_cache(folder / "cache"),
            limits=DEFAULT_LIMITS,
            task=NO_TASK,
        )
        self.packs: list[Pack] = packing.packs(opened, packing.tally(), None)
        self.path = folder / "tried.sqsh"

    def stitch(self) -> Stitched:
        """Stitch the tree, with tables that are stored without compression: each byte of them counts."""
        options = StitchOptions(codec=Codec(), block_size=BLOCK)
        with (
            self.path.open("w+b") as target,
            mock.patch.object(Codec, "make_compress", return_value=lambda data: data),
        ):
            return stitching.stitch(self.made.tree, self.packs, target.fileno(), options)

    def outcomes(self, stitched: Stitched) -> tuple[bool, bool]:
        """Whether the quick and the complete check accept the file as it is on the disk now."""
        file = dataclasses.replace(self.made, path=self.path, size=stitched.size, read=None)
        return self._quick(file, stitched.ranges), accepts(file)

    def _quick(self, file: SquashfsFile, ranges: tuple[Range, ...]) -> bool:
        try:
            read = read_back(self.path, self.packs, ranges)
        except PackDamaged:
            raise
        except (FormatError, OSError):
            return False
        return accepts(dataclasses.replace(file, read=read))


def accepts(file: SquashfsFile) -> bool:
    try:
        verified = verify(file)
    except VerificationError:
        return False
    assert verified.checks == (CHECKS if file.read is None else QUICK_CHECKS)
    return True


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trial]:
    with contextlib.ExitStack() as opened:
        trial = Trial(tmp_path, opened)
        monkeypatch.setattr(proof, "drop_cache", lambda _: None)  # the bytes are the same, the disk is slow
        yield trial


def test_nearly_nothing_of_a_sound_file_is_expanded(tmp_path: Path) -> None:
    with contextlib.ExitStack() as opened:
        trial = Trial(tmp_path, opened)
        read = trial.made.read
        assert read is not None
        proven = {path for path, node in trial.made.tree.items() if read.proves(read.inodes[path], node)}
        copied = {b"big", b"same", b"again", b"last", b"once", b"zeros", b"holes", b"half", b"link"}
        assert copied | {b"text-0", b"text-5"} <= proven
        assert {b"far-tail", b"tail-9", b"more"} <= proven
        assert not {b"tail-0", b"tail-2", b"tail-again"} & proven, (
            "tail-1 lay in their fragment, and is hidden"
        )
        assert trial.outcomes(trial.stitch()) == (True, True)


Damage = Callable[[bytearray, Superblock, random.Random], None]


def change_bytes(data: bytearray, places: Superblock, rng: random.Random) -> None:
    ends = [places.inode_table, places.directory_table, places.fragment_table, len(data)]
    for _ in range(rng.choice((1, 1, 2, 5))):
        start, end = rng.choice(
            [(0, ends[0]), *[(ends[0], ends[1])] * 4, (ends[1], ends[2]), (ends[2], ends[3])]
        )
        at = rng.randrange(start, end)
        data[at] = rng.choice((0, 0xFF, data[at] ^ 1 << rng.randrange(8), rng.randrange(256)))


def move_bytes(data: bytearray, _: Superblock, rng: random.Random) -> None:
    length = rng.choice((1, 8, 512, 900, BLOCK))
    source, target = rng.randrange(len(data) - length), rng.randrange(len(data) - length)
    data[target : target + length] = data[source : source + length]


def swap_numbers(data: bytearray, places: Superblock, rng: random.Random) -> None:
    """Two numbers of the inodes or of the fragment table: starts, offsets, words, fragments."""
    start, end = rng.choice(
        ((places.inode_table, places.directory_table), (places.fragment_table - 400, len(data)))
    )
    one, other = (rng.randrange(start, end - 4) for _ in range(2))
    data[one : one + 4], data[other : other + 4] = data[other : other + 4], data[one : one + 4]


def add_to_a_number(data: bytearray, places: Superblock, rng: random.Random) -> None:
    at = rng.randrange(places.inode_table, places.directory_table - 4)
    (value,) = struct.unpack_from("<I", data, at)
    struct.pack_into("<I", data, at, (value + rng.choice((-1, 1, 900, -900, BLOCK, -BLOCK))) % (1 << 32))


def cut(data: bytearray, _: Superblock, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


DAMAGES: list[Damage] = [change_bytes] * 4 + [move_bytes, swap_numbers, add_to_a_number] * 3 + [cut]


def damage_campaign(trial: Trial, rounds: int, seed: int) -> Counter[tuple[bool, bool]]:
    stitched = trial.stitch()
    good = trial.path.read_bytes()
    places = Superblock.parse(good, file_size=len(good), name="good")
    rng = random.Random(seed)
    seen: Counter[tuple[bool, bool]] = Counter()
    for number in range(rounds):
        data = bytearray(good)
        damage = rng.choice(DAMAGES)
        damage(data, places, rng)
        trial.path.write_bytes(data)
        outcome = trial.outcomes(stitched)
        assert outcome[0] == outcome[1], f"round {number} of seed {seed}, {damage.__name__}"
        seen[outcome] += 1
    return seen


def test_random_changes_of_a_finished_file(trial: Trial) -> None:
    seen = damage_campaign(trial, 200, 1)
    assert seen[False, False] > 80, seen
    assert seen[True, True] > 2, "what changes nothing that counts is accepted"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_random_changes_of_a_finished_file(trial: Trial) -> None:
    damage_campaign(trial, 10_000, 2)


def some_file(layout: Layout, rng: random.Random) -> tuple[int, int]:
    layer = rng.randrange(len(layout.places))
    return layer, rng.randrange(len(layout.places[layer]))


def shift_place(layout: Layout, rng: random.Random) -> None:
    layer, number = some_file(layout, rng)
    column = layout.places[layer]
    column[number] = max(0, column[number] + rng.choice((-1, 1, -BLOCK, BLOCK, rng.randrange(-900, 900))))


def shift_offset(layout: Layout, rng: random.Random) -> None:
    layer, number = some_file(layout, rng)
    column = layout.offsets[layer]
    column[number] = max(0, column[number] + rng.choice((-1, 1, -900, 900, rng.randrange(-900, 900))))


def take_the_place_of_another(layout: Layout, rng: random.Random) -> None:
    one, other = some_file(layout, rng), some_file(layout, rng)
    layout.places[one[0]][one[1]] = layout.places[other[0]][other[1]]
    layout.offsets[one[0]][one[1]] = layout.offsets[other[0]][other[1]]


def swap_fragments(layout: Layout, rng: random.Random) -> None:
    one, other = (rng.randrange(len(layout.fragments)) for _ in range(2))
    fragments = layout.fragments
    fragments[one], fragments[other] = fragments[other], fragments[one]


def change_fragment(layout: Layout, rng: random.Random) -> None:
    at = rng.randrange(len(layout.fragments))
    position, word = layout.fragments[at]
    by = rng.choice((-1, 1))
    layout.fragments[at] = rng.choice(((position + by, word), (position, word + by), (position, word ^ RAW)))


def follow_another(layout: Layout, rng: random.Random) -> None:
    """A wrong follower, of a moved tail or of what stays."""
    if layout.followers and rng.random() < 0.5:
        at = rng.randrange(len(layout.followers))
        layer, number = some_file(layout, rng)
        layout.followers[at] = (layout.followers[at][0], layer << 40 | number)
        return
    one, other = some_file(layout, rng), some_file(layout, rng)
    copy_place(layout, one[0] << 40 | one[1], other[0] << 40 | other[1])


def swap_moved(layout: Layout, rng: random.Random) -> None:
    if len(layout.moved) > 1:
        one, other = rng.sample(range(len(layout.moved)), 2)
        layout.moved[one] = layout.moved[other]


def change_range(layout: Layout, rng: random.Random) -> None:
    at = rng.randrange(len(layout.ranges))
    item, by = layout.ranges[at], rng.choice((-900, -1, 1, 16, BLOCK))
    layer = rng.randrange(len(layout.places))
    layout.ranges[at] = rng.choice(
        (
            Range(item.layer, max(0, item.source + by), item.length, item.target),
            Range(item.layer, item.source, item.length, max(0, item.target + by)),
            Range(item.layer, item.source, max(1, item.length - abs(by)), item.target),
            Range(layer, 0, min(item.length, 900), item.target),
        )
    )


PLANS = [
    shift_place,
    shift_offset,
    take_the_place_of_another,
    swap_fragments,
    change_fragment,
    follow_another,
    swap_moved,
    change_range,
]


def wrong_words(rng: random.Random) -> Callable[[Any, int, int], array[int]]:
    """Every now and then a file whose words have a hole too many, one too few, or another order."""
    real = stitching.file_words

    def words(index: Any, number: int, block_size: int) -> array[int]:
        found = real(index, number, block_size)
        if rng.random() < 0.3:
            one, other = (rng.randrange(len(found)) for _ in range(2))
            found = found[:]
            found[one], found[other] = rng.choice(
                ((0, found[other]), (found[other], found[one]), (found[one], 900))
            )
        return found

    return words


def plan_campaign(trial: Trial, rounds: int, seed: int) -> Counter[tuple[bool, bool]]:
    real = stitching.lay_out
    seen: Counter[tuple[bool, bool]] = Counter()
    for number in range(rounds):
        rng = random.Random(f"{seed} {number}")
        changes = rng.choices(PLANS, k=rng.choice((1, 1, 1, 2)))

        def lay_out(*given: Any, rng: random.Random = rng, changes: Any = changes, **named: Any) -> Layout:
            layout = real(*given, **named)
            for change in changes:
                change(layout, rng)
            return layout

        patches = {"lay_out": lay_out} if rng.random() < 0.85 else {"file_words": wrong_words(rng)}
        try:
            with mock.patch.multiple(stitching, **patches):
                stitched = trial.stitch()
        except (FormatError, IndexError, OverflowError, OSError):
            continue  # it does not even come to a file
        outcome = trial.outcomes(stitched)
        assert outcome[0] == outcome[1], f"round {number} of seed {seed}: {sorted(patches)}, {changes}"
        seen[outcome] += 1
    return seen


def test_random_changes_of_what_the_planner_decides(trial: Trial) -> None:
    seen = plan_campaign(trial, 200, 1)
    assert seen[False, False] > 50, seen
    assert seen[True, True] > 10, "what no file refers to may be anywhere"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_random_changes_of_what_the_planner_decides(trial: Trial) -> None:
    plan_campaign(trial, 10_000, 2)


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[tuple[Path, Path]]:
    """A file system in a file: the file, and where it is mounted."""
    backing, mount = folder / "disk", folder / "mounted"
    mount.mkdir()
    with backing.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", backing], check=True, timeout=60)
    subprocess.run(["mount", "-o", "loop", backing, mount], check=True, timeout=60)
    try:
        yield backing, mount
    finally:
        subprocess.run(["umount", mount], check=True, timeout=60)


def change_below(backing: Path, content: bytes) -> None:
    """Change the blocks that hold `content`, below the file system, whose pages stay as they were."""
    data = backing.read_bytes()
    at = data.find(content)
    assert at >= 0
    with backing.open("r+b") as file:
        file.seek(at + 10)
        file.write(b"\xff\x00\xff")


CONTENT = random.Random(9).randbytes(300_000)


def small_image(folder: Path, content: bytes = CONTENT) -> ImageSource:
    return image(folder, [LayerBuilder().dir("bin").file("bin/sh", b"#!", mode=0o755).file("data", content)])


def converted(source: ImageSource, output: Path, cache: Path) -> SquashfsFile:
    return convert(
        source, ConvertOptions(converter="native"), output=output, scratch=cache / "s", cache=cache
    )


@pytest.mark.needs("root", "mkfs.ext4")
def test_the_disk_is_read_and_not_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are right in the page cache alone are those of a file that will be wrong tomorrow."""
    with disk(tmp_path) as (backing, mount):
        real, pages = native.read_back, list[bytes]()

        def changed(path: Path, *given: Any, **named: Any) -> ReadBack:
            change_below(backing, CONTENT[1000:2000])
            pages.append(path.read_bytes())
            return real(path, *given, **named)

        monkeypatch.setattr(native, "read_back", changed)
        file = converted(small_image(tmp_path / "image"), mount / "x.sqsh", tmp_path / "cache")
        assert CONTENT[1000:2000] in pages[0], "the page cache has the right bytes"
        with pytest.raises(VerificationError, match="/data: content differs"):
            verify(file)


@pytest.mark.needs("root", "mkfs.ext4")
def test_a_pack_is_compared_with_its_layer_from_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with disk(tmp_path) as (backing, mount):
        real = packs_cache.check_data

        def changed(descriptor: int, *given: Any, **named: Any) -> None:
            subprocess.run(["sync", "-f", mount], check=True, timeout=60)
            change_below(backing, CONTENT[1000:2000])
            real(descriptor, *given, **named)

        monkeypatch.setattr(packs_cache, "check_data", changed)
        with pytest.raises(
            VerificationError, match=r"a new layer pack in .* has other bytes than were written"
        ):
            converted(small_image(tmp_path / "image"), tmp_path / "x.sqsh", mount / "cache")
        assert pack_cache(mount / "cache").packs() == [], "it must not be believed later"
        monkeypatch.setattr(packs_cache, "check_data", real)
        verify(converted(small_image(tmp_path / "image"), tmp_path / "x.sqsh", mount / "cache"))


def test_packs_that_nobody_compared_prove_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs_cache.PackWriteHandle, "check", lambda *_, **__: None)
    file = converted(small_image(tmp_path / "image"), tmp_path / "x.sqsh", tmp_path / "cache")
    read = file.read
    assert read is not None
    assert not any(read.proves(read.inodes[path], node) for path, node in file.tree.items())
    verify(file)


def test_content_that_was_packed_wrongly_is_found_when_the_pack_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A codec, or the memory, that changes a byte between the layer and the compressor."""
    real = Codec.make_compress_many

    def wrong(codec: Codec) -> Any:
        compress = real(codec)
        return lambda blocks: compress([b"\xff" + bytes(block)[1:] for block in blocks])

    monkeypatch.setattr(Codec, "make_compress_many", wrong)
    source = small_image(tmp_path / "image", b"what can be compressed " * 20_000)
    with pytest.raises(VerificationError, match="has other content than its layer"):
        converted(source, tmp_path / "x.sqsh", tmp_path / "cache")
    assert pack_cache(tmp_path / "cache").packs() == []
