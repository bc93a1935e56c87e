"""What the start of a program reads of a squashfs file: ranges of this file, and blocks of the image's files.

The ranges serve this file alone. The blocks serve another version of the image as well: `resolve` looks the
same files up there, and leaves out each whose blocks are stored otherwise. The tables at the end of the file
(inodes, folders, fragments, owners, xattrs) are new in each version and always read whole.
"""

from __future__ import annotations

import binascii
import os
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from pipeline.errors import FormatError
from pipeline.squashfs.blocks import LENGTH
from pipeline.squashfs.inode import NO_FRAGMENT, Inode, Kind
from pipeline.squashfs.reader import SquashfsImage
from pipeline.squashfs.superblock import SIZE

SCHEMA = 1
MOST_RANGES = 1 << 16
MOST_FILES = 1 << 16
MOST_RUNS = 1 << 18
LONGEST_PATH = 1 << 14  # characters as stored
NAMED = 16  # files that name one fragment block

Range = tuple[int, int]
"""Position and length in bytes; of blocks: number of the first one and how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileBlocks:
    """Blocks of one file. `stored` is a checksum of its size and of how its blocks are stored."""

    path: bytes
    stored: str
    runs: tuple[Range, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a start reads of the file with this sha256 and size (bytes), each in order of its first read.

    No two `ranges` overlap. Each of `tails` is one fragment block, named by files whose ends lie in it.
    """

    sha256: str
    size: int
    ranges: tuple[Range, ...]
    files: tuple[FileBlocks, ...] = ()
    tails: tuple[tuple[bytes, ...], ...] = ()

    @property
    def bytes_read(self) -> int:
        return sum(length for _, length in self.ranges)

    def as_table(self) -> dict[str, Any]:
        """The JSON object; paths are percent-encoded, since their bytes need not be text."""
        return {
            "schema": SCHEMA,
            "sha256": self.sha256,
            "size": self.size,
            "ranges": [list(each) for each in self.ranges],
            "files": [
                [quote_from_bytes(f.path), f.stored, [list(run) for run in f.runs]] for f in self.files
            ],
            "tails": [[quote_from_bytes(path) for path in paths] for paths in self.tails],
        }

    @classmethod
    def from_table(cls, table: Mapping[str, Any], what: str) -> Profile:
        """Read a profile strictly; `what` names it in FormatError's sentence.

        Refused: ranges that overlap or lie outside the file, more of anything than a start can need, other
        types.
        """
        sha256, size = table.get("sha256"), _count(table.get("size"), what)
        if not isinstance(sha256, str) or len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise FormatError(f"{what} names no file by its sha256")
        ranges = _pairs(table.get("ranges"), MOST_RANGES, what)
        if any(a + length > b for (a, length), (b, _) in pairwise([*sorted(ranges), (size, 0)])):
            raise FormatError(f"{what} has ranges that overlap or lie outside its file")
        files, budget = [], MOST_RUNS
        for each in _list(table.get("files"), MOST_FILES, what):
            path, stored, runs = each if isinstance(each, list) and len(each) == 3 else (None, None, None)
            if not isinstance(stored, str) or len(stored) > 32:
                raise FormatError(f"{what} has a file that is not [path, checksum, blocks]")
            found = _pairs(runs, budget, what)
            budget -= len(found)
            files.append(FileBlocks(path=_path(path, what), stored=stored, runs=found))
        tails = [
            tuple(_path(path, what) for path in _list(paths, NAMED, what))
            for paths in _list(table.get("tails"), MOST_FILES, what)
        ]
        return cls(sha256=sha256, size=size, ranges=ranges, files=tuple(files), tails=tuple(tails))


def describe(image: SquashfsImage, sha256: str, reads: Sequence[Range]) -> Profile:
    """The profile for what was read of an open image, `reads` in their order.

    Raises FormatError when the image is damaged.
    """
    size = os.fstat(image.descriptor).st_size
    reads = [(start, length) for start, length in reads if length > 0 and start + length <= size]
    touched = _Touched(merged(reads))
    fragments = {
        number: order
        for number in range(len(image.fragments))
        if (order := touched.order(*_stored_fragment(image, number))) is not None
    }
    files: list[tuple[int, FileBlocks]] = []
    names: dict[int, list[bytes]] = {number: [] for number in fragments}
    seen = set[int]()
    for path, inode in image.walk():
        if inode.kind is not Kind.FILE or inode.reference in seen or len(path) > LONGEST_PATH // 3:
            continue
        if inode.nlink > 1:
            seen.add(inode.reference)
        if inode.words and (blocks := _blocks_read(image, inode, touched)):
            order = min(order for _, order in blocks)
            runs = _runs([number for number, _ in blocks])
            files.append((order, FileBlocks(path=path, stored=fingerprint(image, inode), runs=runs)))
        if inode.fragment in names and len(names[inode.fragment]) < NAMED:
            names[inode.fragment].append(path)
    return Profile(
        sha256=sha256,
        size=size,
        ranges=tuple(merged([_tables(image), (0, SIZE), *reads])[:MOST_RANGES]),
        files=tuple(each for _, each in sorted(files, key=lambda pair: pair[0])[:MOST_FILES]),
        tails=tuple(tuple(names[each]) for each in sorted(fragments, key=fragments.__getitem__)),
    )


def resolve(profile: Profile, image: SquashfsImage, sha256: str) -> Profile:
    """The same start for another file: the blocks of the files that are there and stored alike.

    Raises FormatError when the image is damaged.
    """
    wanted = {each.path for each in profile.files} | {path for paths in profile.tails for path in paths}
    found = {path: inode for path, inode in image.walk() if path in wanted and inode.kind is Kind.FILE}
    reads: list[Range] = []
    for each in profile.files:
        inode = found.get(each.path)
        if inode is None or fingerprint(image, inode) != each.stored:
            continue
        spans = list(image.spans(inode))
        for first, count in each.runs:
            reads += [(span.position, span.word & LENGTH) for span in spans[first : first + count]]
    for paths in profile.tails:
        there = Counter(found[path].fragment for path in paths if path in found)
        del there[NO_FRAGMENT]
        for number, names in there.most_common():  # another version may spread them over two or three
            if names * 4 >= there.total():
                start, end = _stored_fragment(image, number)
                reads.append((start, end - start))
    return describe(image, sha256, reads)


def merged(reads: Iterable[Range]) -> list[Range]:
    """The bytes that `reads` cover, as ranges that neither overlap nor touch, ordered by their first read."""
    found: list[list[int]] = []
    for start, length, order in sorted((start, length, order) for order, (start, length) in enumerate(reads)):
        if found and start <= found[-1][1]:
            found[-1][1] = max(found[-1][1], start + length)
            found[-1][2] = min(found[-1][2], order)
        else:
            found.append([start, start + length, order])
    return [(start, end - start) for start, end, _ in sorted(found, key=lambda each: each[2])]


def fingerprint(image: SquashfsImage, inode: Inode) -> str:
    """A checksum of a file's size and of how its blocks are stored."""
    head = f"{image.superblock.block_size} {inode.size} ".encode()
    return f"{binascii.crc32(head + inode.words):08x}"


class _Touched:
    """Ranges that do not overlap, to look positions up in."""

    def __init__(self, ranges: Sequence[Range]) -> None:
        placed = sorted((start, start + length, order) for order, (start, length) in enumerate(ranges))
        self._starts = [start for start, _, _ in placed]
        self._ends = [end for _, end, _ in placed]
        self._orders = [order for _, _, order in placed]

    def order(self, start: int, end: int) -> int | None:
        """When the first of these bytes was read; None when none was."""
        orders = self._orders[bisect_right(self._ends, start) : bisect_left(self._starts, end)]
        return min(orders, default=None) if start < end else None


def _blocks_read(image: SquashfsImage, inode: Inode, touched: _Touched) -> list[tuple[int, int]]:
    """(number, order) of the blocks of a file that were read."""
    spans = list(image.spans(inode))
    if touched.order(inode.start, spans[-1].position + (spans[-1].word & LENGTH)) is None:
        return []
    orders = [touched.order(span.position, span.position + (span.word & LENGTH)) for span in spans]
    return [(number, order) for number, order in enumerate(orders) if order is not None]


def _runs(numbers: Sequence[int]) -> tuple[Range, ...]:
    return tuple(sorted(merged((number, 1) for number in numbers)))


def _tables(image: SquashfsImage) -> Range:
    """Everything behind the data blocks: all tables of the file."""
    start = image.superblock.inode_table
    return start, image.superblock.bytes_used - start


def _stored_fragment(image: SquashfsImage, number: int) -> Range:
    """Start and end of a fragment block."""
    span = image.fragment_span(number)
    return span.position, span.position + (span.word & LENGTH)


def _count(value: object, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise FormatError(f"{what} has something else where a number of bytes or blocks belongs")
    return value


def _list(value: object, most: int, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise FormatError(f"{what} has something else where a list belongs")
    if len(value) > most:
        raise FormatError(f"{what} has a list of {len(value)} entries; at most {most} are read")
    return value


def _pairs(value: object, most: int, what: str) -> tuple[Range, ...]:
    """[[start, length], …] with lengths above zero."""
    pairs = []
    for each in _list(value, most, what):
        if not isinstance(each, list) or len(each) != 2 or not each[1]:
            raise FormatError(f"{what} has a range that is not [start, length]")
        pairs.append((_count(each[0], what), _count(each[1], what)))
    return tuple(pairs)


def _path(value: object, what: str) -> bytes:
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_PATH:
        raise FormatError(f"{what} has a path that is not text of at most {LONGEST_PATH} characters")
    return unquote_to_bytes(value)
