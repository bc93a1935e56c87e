"""Which bytes of a stitched .sqsh are which of a layer pack, and what two such files have in common.

The stored form is JSON: {"schema": 1, "size", "packs": [[key, size], …], "ranges": [[pack, source, target,
length], …]}. `size` is that of the file, a pack's `size` that of its data, `pack` is the number of a pack
in `packs`, `source` an offset in its data, `target` one in the file; all in bytes. Ranges are in the order
of `target`. What lies between two of them is padding of less than 4 KiB; what lies behind the last one is
in no pack.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import FormatError
from pipeline.squashfs.layout import ALIGNMENT, Range

SCHEMA = 1
MOST_BYTES = 4 << 20  # of the stored form
_MOST_RANGES = 1 << 16
_MOST_PACKS = 4096
_KEY = re.compile(r"[0-9a-f]{64}")
_LARGEST = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class PackRanges:
    """`packs` has the key and the data's size of each pack, `ranges` name them by number in `layer`.

    Neither in the file nor in one pack do two ranges overlap; they are in the order of the file.
    """

    size: int
    packs: tuple[tuple[str, int], ...]
    ranges: tuple[Range, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for key, _ in self.packs)

    def encode(self) -> bytes:
        """The stored form, with the same bytes for the same value."""
        head = {"schema": SCHEMA, "size": self.size, "packs": [list(pack) for pack in self.packs]}
        rows = [[item.layer, item.source, item.target, item.length] for item in self.ranges]
        return json.dumps({**head, "ranges": rows}, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def decode(cls, stored: bytes) -> PackRanges:
        """The value in `stored`; FormatError when a number is not possible."""
        try:
            if len(stored) > MOST_BYTES:
                raise ValueError(f"they take {len(stored)} bytes")
            return _decoded(json.loads(stored))
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise FormatError(f"the ranges of a .sqsh are damaged: {error}") from error


def of_layers(size: int, packs: Sequence[tuple[str, int]], ranges: Sequence[Range]) -> PackRanges | None:
    """The ranges of a file of `size` bytes; `packs` has key and data size for each layer, base first.

    A layer that is there twice is one pack. None when there are more than can be stored.
    """
    if len(ranges) > _MOST_RANGES or len(packs) > _MOST_PACKS:
        return None
    numbers = {key: number for number, key in enumerate(dict.fromkeys(key for key, _ in packs))}
    found = [Range(numbers[packs[item.layer][0]], item.source, item.length, item.target) for item in ranges]
    return PackRanges(
        size=size,
        packs=tuple(dict(packs).items()),
        ranges=tuple(sorted(found, key=lambda item: item.target)),
    )


def _decoded(data: Mapping[str, object]) -> PackRanges:
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ValueError("they have another schema")
    packs, rows = data["packs"], data["ranges"]
    if not isinstance(packs, list) or not isinstance(rows, list):
        raise TypeError("they are not lists")
    if len(packs) > _MOST_PACKS or len(rows) > _MOST_RANGES:
        raise ValueError(f"there are {len(rows)} of {len(packs)} packs")
    size = _number(data["size"], _LARGEST)
    named = tuple((_key(key), _number(length, _LARGEST)) for key, length in packs)
    if len(dict(named)) != len(named):
        raise ValueError("a pack is named twice")
    ranges = []
    end = 0
    for pack, source, target, length in rows:
        number = _number(pack, len(named) - 1)
        if _number(length, size) == 0 or not end <= _number(target, size) <= size - length:
            raise ValueError(f"{length} bytes at {target} do not follow what ends at {end}")
        if _number(source, named[number][1]) > named[number][1] - length:
            raise ValueError(f"{length} bytes at {source} are not in a pack of {named[number][1]}")
        ranges.append(Range(number, source, length, target))
        end = target + length
    _refuse_overlaps(ranges)
    return PackRanges(size=size, packs=named, ranges=tuple(ranges))


def _refuse_overlaps(ranges: Sequence[Range]) -> None:
    before: tuple[int, int] = (-1, 0)  # pack, end
    for item in sorted(ranges, key=lambda item: (item.layer, item.source)):
        if item.layer == before[0] and item.source < before[1]:
            raise ValueError(f"two of them have the byte {item.source} of pack {item.layer}")
        before = (item.layer, item.source + item.length)


def _number(value: object, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"{str(value)[:40]!r} is not a number from 0 to {most}")
    return value


def _key(value: object) -> str:
    if not isinstance(value, str) or not _KEY.fullmatch(value):
        raise ValueError("the key of a pack is not 64 hex digits")
    return value


@dataclass(frozen=True, slots=True)
class Piece:
    """`length` bytes at `target` of a file are those at `source` of the held file number `held`.

    `held` None: no held file has them.
    """

    held: int | None
    source: int
    target: int
    length: int


def pieces(wanted: PackRanges, held: Sequence[PackRanges], *, shortest: int = 1) -> list[Piece]:
    """Every byte of the wanted file once, in order: where a held file has it, or that none has it.

    Of several held files the first counts. What is shorter than `shortest` counts as held by none. Padding
    between two pieces with the same shift belongs to them.
    """
    shared = _joined(wanted, held, _shared(wanted, held))
    found: list[Piece] = []
    position = 0
    for piece in shared:
        if piece.length < shortest:
            continue
        if piece.target > position:
            found.append(Piece(None, position, position, piece.target - position))
        found.append(piece)
        position = piece.target + piece.length
    if position < wanted.size:
        found.append(Piece(None, position, position, wanted.size - position))
    return found


class _Held:
    """The ranges of one held file, by pack key and in the order of the pack."""

    def __init__(self, number: int, ranges: PackRanges) -> None:
        self.number = number
        self._by_key: dict[str, list[Range]] = {}
        for item in sorted(ranges.ranges, key=lambda item: item.source):
            self._by_key.setdefault(ranges.packs[item.layer][0], []).append(item)
        self._starts = {key: [item.source for item in items] for key, items in self._by_key.items()}

    def overlapping(self, key: str, begin: int, end: int) -> Iterable[Range]:
        """Its ranges of a pack that have bytes from `begin` to `end`, in order."""
        items = self._by_key.get(key, [])
        at = max(bisect_right(self._starts.get(key, []), begin) - 1, 0)
        while at < len(items) and items[at].source < end:
            if items[at].source + items[at].length > begin:
                yield items[at]
            at += 1


def _shared(wanted: PackRanges, held: Sequence[PackRanges]) -> list[Piece]:
    files = [_Held(number, ranges) for number, ranges in enumerate(held)]
    found: list[Piece] = []
    for item in wanted.ranges:
        key = wanted.packs[item.layer][0]
        missing = [(item.source, item.source + item.length)]
        for file in files:
            left: list[tuple[int, int]] = []
            for begin, end in missing:
                position = begin
                for other in file.overlapping(key, begin, end):
                    first, last = max(position, other.source), min(end, other.source + other.length)
                    if first > position:
                        left.append((position, first))
                    place = item.target + first - item.source
                    found.append(Piece(file.number, other.target + first - other.source, place, last - first))
                    position = last
                if position < end:
                    left.append((position, end))
            missing = left
    return sorted(found, key=lambda piece: piece.target)


def _joined(wanted: PackRanges, held: Sequence[PackRanges], shared: Iterable[Piece]) -> list[Piece]:
    """Pieces with the same shift as one, with the padding between them."""
    wanted_starts = [item.target for item in wanted.ranges]
    held_starts = [[item.target for item in ranges.ranges] for ranges in held]
    joined: list[Piece] = []
    for piece in shared:
        last = joined[-1] if joined else None
        if last is not None and last.held is not None and last.held == piece.held:
            gap = piece.target - last.target - last.length
            same = piece.source - piece.target == last.source - last.target
            if (
                same
                and gap < ALIGNMENT
                and _next(wanted_starts, last.target + last.length) >= piece.target
                and _next(held_starts[last.held], last.source + last.length) >= piece.source
            ):
                length = piece.target + piece.length - last.target
                joined[-1] = Piece(last.held, last.source, last.target, length)
                continue
        joined.append(piece)
    return joined


def _next(starts: Sequence[int], position: int) -> int:
    """Where the first range at or behind `position` begins."""
    at = bisect_right(starts, position - 1)
    return starts[at] if at < len(starts) else _LARGEST
