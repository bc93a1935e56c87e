"""What a layer pack holds, entry by entry, as columns.

A layer may have a million entries, so nothing here is an object an entry: columns load in milliseconds and
cost their own bytes. `data` is everything before the index in the pack file.

Where a file's content is follows from its size: nothing for size 0; in a fragment below the block size, with
`place` the fragment's number and `detail` the offset in it; in blocks of its own otherwise, with `place` the
position in the data and `detail` the first of its ceil(size / block size) entries in `words`. `word_sums` and
`fragment_sums` have the crc32 of each stored block, so that each can be read and checked alone.
"""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, chain, repeat
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import zstandard

from pipeline.errors import FormatError
from pipeline.squashfs.blocks import LENGTH
from pipeline.squashfs.inode import Kind
from pipeline.squashfs.superblock import MAX_BLOCK_SIZE
from pipeline.system.memory import require_memory

if TYPE_CHECKING:
    from typing_extensions import Self

Piece = tuple[int, int, int]  # position in the data, stored length, crc32 of the stored bytes

DIGEST_SIZE = 16  # of sha256: names content that lies in a fragment
_LEVEL = 3
_NUL = b"\0"
_OTHER_DAMAGE = (AttributeError, OverflowError, RecursionError)

Xattrs = tuple[tuple[bytes, bytes], ...]


_COLUMNS = (
    ("modes", "H"),
    ("uids", "I"),
    ("gids", "I"),
    ("mtimes", "Q"),
    ("sizes", "Q"),
    ("checksums", "I"),
    ("places", "Q"),
    ("details", "I"),
    ("words", "I"),
    ("word_sums", "I"),
    ("fragment_positions", "Q"),
    ("fragment_words", "I"),
    ("fragment_sizes", "I"),
    ("fragment_sums", "I"),
)
_PER_ENTRY = ("modes", "uids", "gids", "mtimes", "sizes", "checksums", "places", "details")
_GROUPS = (
    ("words", "word_sums"),
    ("fragment_positions", "fragment_words", "fragment_sizes", "fragment_sums"),
)


@dataclass(slots=True, kw_only=True)
class PackIndex:
    """The columns. `header` holds what is known once: block_size, diff_id.

    `shown` is 1 for each entry of which all is known; empty in a pack, where that is so of every entry.
    """

    COLUMNS: ClassVar[tuple[tuple[str, str], ...]] = _COLUMNS
    PER_ENTRY: ClassVar[tuple[str, ...]] = _PER_ENTRY
    GROUPS: ClassVar[tuple[tuple[str, ...], ...]] = _GROUPS
    LARGEST: ClassVar[int] = 1 << 32  # bytes of the plain index

    header: dict[str, Any]
    paths: list[bytes] = field(default_factory=list)
    kinds: bytearray = field(default_factory=bytearray)
    modes: array[int] = field(default_factory=lambda: array("H"))
    uids: array[int] = field(default_factory=lambda: array("I"))
    gids: array[int] = field(default_factory=lambda: array("I"))
    mtimes: array[int] = field(default_factory=lambda: array("Q"))
    sizes: array[int] = field(default_factory=lambda: array("Q"))
    checksums: array[int] = field(default_factory=lambda: array("I"))
    places: array[int] = field(default_factory=lambda: array("Q"))
    details: array[int] = field(default_factory=lambda: array("I"))
    digests: bytearray = field(default_factory=bytearray)
    words: array[int] = field(default_factory=lambda: array("I"))
    word_sums: array[int] = field(default_factory=lambda: array("I"))
    fragment_positions: array[int] = field(default_factory=lambda: array("Q"))
    fragment_words: array[int] = field(default_factory=lambda: array("I"))
    fragment_sizes: array[int] = field(default_factory=lambda: array("I"))
    fragment_sums: array[int] = field(default_factory=lambda: array("I"))
    targets: dict[int, bytes] = field(default_factory=dict)
    devices: dict[int, tuple[int, int]] = field(default_factory=dict)
    xattrs: dict[int, Xattrs] = field(default_factory=dict)
    shown: array[int] = field(default_factory=lambda: array("B"))

    def __len__(self) -> int:
        return len(self.paths)

    def check(self) -> None:
        """Raise ValueError or LookupError unless every number in it is possible."""
        block_size = self.header["block_size"]
        _check_numbers(self, block_size)
        _check_content(self, block_size)
        self._check_pieces()

    def _check_pieces(self) -> None:
        """The stored blocks follow each other from position 0 without gaps."""
        pieces = self.pieces()
        ends = accumulate(length for _, length, _ in pieces)
        if 0 in self.fragment_words or [piece[0] for piece in pieces] != [0, *ends][: len(pieces)]:
            raise ValueError("its blocks do not follow each other")

    @property
    def data_size(self) -> int:
        """Bytes of the data: the index says where each of them belongs."""
        return sum(word & LENGTH for word in chain(self.words, self.fragment_words))

    def pieces(self) -> list[Piece]:
        """Every stored block and fragment, in the order of the data; holes are not stored."""
        block_size, words, sums = self.header["block_size"], self.words, self.word_sums
        found = [
            (position, word & LENGTH, checksum)
            for position, word, checksum in zip(
                self.fragment_positions, self.fragment_words, self.fragment_sums, strict=True
            )
            if word
        ]
        for number, (size, shown) in enumerate(zip(self.sizes, self.visible(), strict=False)):
            if size < block_size or not shown:
                continue
            position, first = self.places[number], self.details[number]
            for at in range(first, first - (-size // block_size)):
                if words[at]:
                    length = words[at] & LENGTH
                    found.append((position, length, sums[at]))
                    position += length
        found.sort()
        return found

    def digest(self, number: int) -> bytes:
        """What names the content of an entry that lies in a fragment."""
        return bytes(self.digests[number * DIGEST_SIZE : (number + 1) * DIGEST_SIZE])

    def visible(self) -> Iterable[int]:
        """For each entry, 1 when all of it is known; there may be more of them than entries."""
        return self.shown or repeat(1)

    def encode(self) -> bytes:
        """The index as stored: one zstd frame of a JSON head and the columns."""
        sections = list(_sections(self))
        head = {
            **self.header,
            "entries": len(self.paths),
            "sections": [len(section) for section in sections],
            "targets": list(self.targets),
            "devices": [[number, *device] for number, device in self.devices.items()],
            "xattrs": [
                [number, [[name.hex(), value.hex()] for name, value in pairs]]
                for number, pairs in self.xattrs.items()
            ],
        }
        text = json.dumps(head, sort_keys=True).encode()
        plain = b"".join([len(text).to_bytes(8, "little"), text, *sections])
        return zstandard.ZstdCompressor(level=_LEVEL).compress(plain)

    @classmethod
    def decode(cls, stored: bytes) -> Self:
        """The index in `stored`; FormatError unless everything in it fits together."""
        try:
            size = zstandard.get_frame_parameters(stored).content_size
            if size > cls.LARGEST:
                raise FormatError("a layer pack's index is too large")
            require_memory(size)
            plain = zstandard.ZstdDecompressor().decompress(stored)
            length = int.from_bytes(plain[:8], "little")
            head = json.loads(plain[8 : 8 + length])
            index = _decoded(cls, head, plain, 8 + length)
            index.check()
            return index
        except (zstandard.ZstdError, LookupError, ValueError, TypeError, *_OTHER_DAMAGE) as error:
            raise FormatError(f"a layer pack's index is damaged: {error}") from error


def _sections(index: PackIndex) -> Iterator[bytes]:
    yield _NUL.join(index.paths)
    yield _NUL.join(index.targets.values())
    yield bytes(index.kinds)
    yield bytes(index.digests)
    for name, _ in index.COLUMNS:
        yield _little(getattr(index, name)).tobytes()


def _little(column: array[int]) -> array[int]:
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return column


_Index = TypeVar("_Index", bound=PackIndex)


def _decoded(cls: type[_Index], head: dict[str, Any], plain: bytes, at: int) -> _Index:
    lengths = [int(length) for length in head.pop("sections")]
    if len(lengths) != 4 + len(cls.COLUMNS) or min(lengths) < 0 or at + sum(lengths) != len(plain):
        raise ValueError("its sections do not add up")
    entries = head.pop("entries")
    if type(entries) is not int or any(
        length != entries * array(code).itemsize
        for (name, code), length in zip(cls.COLUMNS, lengths[4:], strict=True)
        if name in cls.PER_ENTRY
    ):
        raise ValueError("its columns differ in length")
    parts = []
    for length in lengths:
        parts.append(plain[at : at + length])
        at += length
    targets = [int(number) for number in head.pop("targets")]
    index = cls(header=head, kinds=bytearray(parts[2]), digests=bytearray(parts[3]))
    index.paths = parts[0].split(_NUL) if entries else []
    index.targets = dict(zip(targets, parts[1].split(_NUL) if targets else (), strict=True))
    index.devices = {int(number): (int(major), int(minor)) for number, major, minor in head.pop("devices")}
    index.xattrs = {
        int(number): tuple((bytes.fromhex(name), bytes.fromhex(value)) for name, value in pairs)
        for number, pairs in head.pop("xattrs")
    }
    for (name, code), part in zip(cls.COLUMNS, parts[4:], strict=True):
        column = array(code)
        column.frombytes(part)
        setattr(index, name, _little(column))
    if len({len(index.paths), len(index.kinds), len(index.digests) // DIGEST_SIZE, entries}) != 1:
        raise ValueError("its columns differ in length")
    return index


def _check_numbers(index: PackIndex, block_size: object) -> None:
    """No number is one that cannot be, wherever it stands; and none names an entry that is not there."""
    if type(block_size) is not int or not 0 < block_size <= MAX_BLOCK_SIZE:
        raise ValueError("its block size is not possible")
    if any(len({len(getattr(index, name)) for name in group}) != 1 for group in index.GROUPS):
        raise ValueError("its columns differ in length")
    kinds, entries = index.kinds or b"\1", len(index.paths)
    if min(kinds) == 0 or max(kinds) > Kind.FIFO or max(index.modes, default=0) > 0o7777:
        raise ValueError("a kind or a mode is not possible")
    for named in (index.targets, index.devices, index.xattrs):
        if named and not (min(named) >= 0 and max(named) < entries):
            raise ValueError("it names an entry that is not there")
    if any(number >> 32 or number < 0 for pair in index.devices.values() for number in pair):
        raise ValueError("a device number is not possible")
    if any(word >> 25 or word & LENGTH > block_size for word in chain(index.words, index.fragment_words)):
        raise ValueError("a block is longer than it may be")
    if index.fragment_sizes and not (
        min(index.fragment_sizes) > 0 and max(index.fragment_sizes) <= block_size
    ):
        raise ValueError("the size of a fragment is not possible")


def _check_content(index: PackIndex, block_size: int) -> None:
    """Every file lies in the fragments or words that are there, and no word belongs to two files."""
    lengths, first = index.fragment_sizes, 0
    file = Kind.FILE
    columns = zip(index.kinds, index.sizes, index.places, index.details, index.visible(), strict=False)
    for kind, size, place, detail, shown in columns:
        if not shown:
            if place or detail:
                raise ValueError("there is content of a file that is not shown")
        elif size >= block_size:
            if detail != first:
                raise ValueError("the words of a file are not where they should be")
            first -= -size // block_size
        elif size and detail + size > lengths[place]:
            raise ValueError("the content of a file is not in its fragment")
        if size and kind != file:
            raise ValueError("something else than a file has content")
    if first != len(index.words):
        raise ValueError("its words are not those of its files")
