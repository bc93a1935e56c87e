"""Damaged files end in FormatError: never in a hang, a crash or unbounded memory."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import FormatError
from pipeline.squashfs.expand import read_all
from pipeline.squashfs.inode import Kind
from pipeline.squashfs.pack import Pack, PackDamaged
from pipeline.squashfs.packindex import PackIndex, Piece
from pipeline.squashfs.reader import SquashfsImage
from pipeline.squashfs.superblock import METADATA_SIZE, Superblock
from tests.support.images.squashfs import Stitcher

BLOCK = 4096
_MOST_READ = 1 << 24


def made(tmp_path: Path) -> tuple[Path, Path]:
    """A small image with one of everything, and its pack."""
    rng = random.Random(11)
    stitcher = Stitcher(tmp_path, block_size=BLOCK)
    stitcher.folder(b"d").file(b"d/noise", rng.randbytes(3 * BLOCK + 5)).file(b"d/small", b"small" * 20)
    stitcher.file(b"d/zero", bytes(2 * BLOCK)).symlink(b"link", b"d/small").link(b"other", b"d/small")
    stitcher.file(b"x", b"x", xattrs=((b"user.a", b"1" * 40),)).device(b"null", 1, 3)
    for number in range(300):
        stitcher.file(b"many-%03d" % number, b"%d" % number)
    return stitcher.stitch(), stitcher.pack_path


def read_everything(path: Path) -> None:
    """All that our readers can do with a file, as long as it does not claim to be huge."""
    with SquashfsImage.open(path) as image:
        inodes = []
        for name, inode in image.walk():
            inodes.append(inode)
            if inode.kind is Kind.SYMLINK:
                image.lookup(name)
        if sum(inode.size for inode in inodes if inode.kind is Kind.FILE) < _MOST_READ:
            read_all(image, lambda _number, _checksum: None, workers=1, inodes=inodes)


def check(path: Path, data: bytes) -> bool:
    """Read `data` as an image; True when it was refused."""
    path.write_bytes(data)
    started = time.monotonic()
    try:
        read_everything(path)
    except FormatError:
        return True
    finally:
        assert time.monotonic() - started < 20
    return False


def campaign(tmp_path: Path, rounds: int, seed: int) -> int:
    good, _ = made(tmp_path)
    data = good.read_bytes()
    superblock = Superblock.parse(data, file_size=len(data), name="good")
    rng = random.Random(seed)
    refused = 0
    for _ in range(rounds):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 5))):
            low = rng.choice((0, superblock.inode_table, superblock.directory_table, 96))
            at = rng.randrange(low, len(data)) if low else rng.randrange(96)
            damaged[at] = rng.choice((0, 0xFF, damaged[at] ^ 1 << rng.randrange(8), rng.randrange(256)))
        if rng.random() < 0.05:
            damaged = damaged[: rng.randrange(len(data))]
        refused += check(tmp_path / "damaged", bytes(damaged))
    return refused


def test_random_damage(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert campaign(tmp_path, 400, seed=1) > 100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_much_random_damage(tmp_path: Path) -> None:
    assert campaign(tmp_path, 20_000, seed=2) > 5000


def test_damage_below_the_compression(tmp_path: Path) -> None:
    """With tables stored as they are, a flipped bit reaches the parsers and not only the decompressor."""
    stitcher = Stitcher(tmp_path, block_size=BLOCK, raw_tables=True)
    stitcher.folder(b"d").folder(b"d/e").file(b"d/e/f", b"f" * 5000).symlink(b"l", b"d")
    for number in range(40):
        stitcher.file(b"d/%02d" % number, b"%d" % number)
    good = stitcher.stitch().read_bytes()
    superblock = Superblock.parse(good, file_size=len(good), name="good")
    rng = random.Random(5)
    refused = 0
    for _ in range(600):
        damaged = bytearray(good)
        for _ in range(rng.choice((1, 3))):
            at = rng.randrange(superblock.inode_table, superblock.bytes_used)
            damaged[at] = rng.choice((0, 0xFF, 0x80, damaged[at] ^ 1 << rng.randrange(8)))
        refused += check(tmp_path / "damaged", bytes(damaged))
    assert refused > 100


@pytest.mark.parametrize("length", [0, 1, 95, 96, 500])
def test_what_is_too_short(tmp_path: Path, length: int) -> None:
    good, _ = made(tmp_path)
    assert check(tmp_path / "short", good.read_bytes()[:length])


def test_a_folder_in_itself_is_noticed(tmp_path: Path) -> None:
    """A listing whose entry leads back to its own folder would be walked for ever."""
    stitcher = Stitcher(tmp_path, block_size=BLOCK, raw_tables=True)
    stitcher.folder(b"d").folder(b"d/e")
    good = stitcher.stitch().read_bytes()
    superblock = Superblock.parse(good, file_size=len(good), name="good")
    start = superblock.directory_table
    damaged = bytearray(good)
    refused = False
    for at in range(start + 2, start + 2 + 60):  # offsets of inodes in the listings: let them lead elsewhere
        for offset in (0, 32, 64):
            damaged[at] = offset
            refused |= check(tmp_path / "damaged", bytes(damaged))
            damaged[at] = good[at]
    assert refused


def test_a_bomb_in_a_metadata_block_is_refused(tmp_path: Path) -> None:
    import zstandard

    good, _ = made(tmp_path)
    data = bytearray(good.read_bytes())
    superblock = Superblock.parse(bytes(data), file_size=len(data), name="good")
    bomb = zstandard.ZstdCompressor().compress(bytes(METADATA_SIZE * 1000))
    data[superblock.inode_table : superblock.inode_table + 2] = len(bomb).to_bytes(2, "little")
    data[superblock.inode_table + 2 : superblock.inode_table + 2 + len(bomb)] = bomb
    assert check(tmp_path / "bomb", bytes(data))


def test_random_damage_to_a_pack(tmp_path: Path) -> None:
    _, path = made(tmp_path)
    good = path.read_bytes()
    rng = random.Random(3)
    with Pack.open(path) as pack:
        data_size = pack.data_size
    for _ in range(300):
        damaged = bytearray(good)
        damaged[rng.randrange(data_size, len(good))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(FormatError):
            Pack.open(path).close()
    for _ in range(50):
        damaged = bytearray(good)
        damaged[rng.randrange(data_size)] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(FormatError):
            read_pack(path)


def read_pack(path: Path) -> None:
    with Pack.open(path) as pack:
        for piece in pack.pieces():
            pack.read_pieces([piece], memoryview(bytearray(piece[1])))


def test_a_pack_index_with_a_right_digest_and_wrong_content(tmp_path: Path) -> None:
    """What only a program with the key to the footer could write is refused as well."""
    from pipeline.squashfs.pack import footer

    _, path = made(tmp_path)
    with Pack.open(path) as pack:
        data = path.read_bytes()[: pack.data_size]
        encoded = pack.index.encode()
    import zstandard

    plain = zstandard.ZstdDecompressor().decompress(encoded)
    rng = random.Random(9)
    accepted = 0
    for _ in range(400):
        damaged = bytearray(plain)
        for _ in range(rng.choice((1, 4))):
            damaged[rng.randrange(len(damaged))] = rng.choice((0, 0xFF, rng.randrange(256)))
        index = zstandard.ZstdCompressor().compress(bytes(damaged))
        path.write_bytes(data + index + footer(index, len(data)))
        try:
            with Pack.open(path) as pack:
                assert isinstance(pack.index, PackIndex)
                accepted += 1
        except FormatError:
            pass
    assert accepted < 400


def wrong(column: str, value: int, at: int = 0) -> Callable[[PackIndex], None]:
    """Puts `value` into a column of an index."""

    def change(index: PackIndex) -> None:
        getattr(index, column)[at] = value

    return change


def first(index: PackIndex, *, blocks: bool) -> int:
    """The first file that has blocks of its own, or the first one whose content is in a fragment."""
    limit = index.header["block_size"]
    return next(number for number, size in enumerate(index.sizes) if size and (size >= limit) == blocks)


IMPOSSIBLE: dict[str, Callable[[PackIndex], None]] = {
    "kind": wrong("kinds", 9),
    "no kind": wrong("kinds", 0),
    "mode": wrong("modes", 0o10000),
    "word longer than a block": wrong("words", 1 << 20),
    "word with unknown bits": wrong("words", 1 << 25),
    "word of another length": wrong("words", 1),
    "fragment's position": wrong("fragment_positions", 5),
    "fragment's position far away": wrong("fragment_positions", 1 << 63),
    "fragment that is not stored": wrong("fragment_words", 0),
    "fragment's size": wrong("fragment_sizes", 1 << 20),
    "fragment that is empty": wrong("fragment_sizes", 0),
    "place of blocks": lambda index: wrong("places", 7, first(index, blocks=True))(index),
    "first word": lambda index: wrong("details", 1, first(index, blocks=True))(index),
    "more words than there are": lambda index: wrong("sizes", 1 << 40, first(index, blocks=True))(index),
    "number of a fragment": lambda index: wrong("places", 99, first(index, blocks=False))(index),
    "offset in a fragment": lambda index: wrong("details", 1 << 30, first(index, blocks=False))(index),
    "content of a folder": lambda index: wrong("kinds", Kind.DIRECTORY, first(index, blocks=False))(index),
    "target of nothing": lambda index: index.targets.update({len(index): b"x"}),
    "device of nothing": lambda index: index.devices.update({-1: (1, 1)}),
    "device": lambda index: index.devices.update({0: (1 << 32, 1)}),
    "block size": lambda index: index.header.update(block_size=0),
    "block size as text": lambda index: index.header.update(block_size="4096"),
    "checksums too many": lambda index: index.word_sums.append(0),
    "times too many": lambda index: index.mtimes.append(0),
}


@pytest.mark.parametrize("change", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_numbers_that_cannot_be_are_refused(tmp_path: Path, change: Callable[[PackIndex], None]) -> None:
    _, path = made(tmp_path)
    with Pack.open(path) as pack:
        index = pack.index
    PackIndex.decode(index.encode())
    change(index)
    with pytest.raises(FormatError):
        PackIndex.decode(index.encode())


def is_right(pack: Pack, piece: Piece) -> bool:
    try:
        pack.read_pieces([piece], memoryview(bytearray(piece[1])))
    except PackDamaged:
        return False
    return True


def test_each_piece_can_be_checked_alone(tmp_path: Path) -> None:
    """A changed bit is found in its own block or fragment, and all others are still right."""
    _, path = made(tmp_path)
    data = bytearray(path.read_bytes())
    with Pack.open(path) as pack:
        pieces, index = pack.pieces(), pack.index
        assert sum(length for _, length, _ in pieces) == pack.data_size
        assert len(pieces) == sum(map(bool, index.words)) + len(index.fragment_words)
        for changed in pieces:
            at = changed[0] + changed[1] // 2
            data[at] ^= 8
            path.write_bytes(data)
            data[at] ^= 8
            assert [piece for piece in pieces if not is_right(pack, piece)] == [changed]
