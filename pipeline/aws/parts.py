"""The parts of a multipart upload: which are sent, and which S3 copies from objects that are there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.squashfs.ranges import Piece

LEAST = 5 << 20  # bytes of a part, except the last
_LARGEST = 5 << 30
_MOST_PARTS = 10_000


@dataclass(frozen=True, slots=True)
class Part:
    """`length` bytes at `begin` of the file: sent, or copied from `source` of the object `key`."""

    begin: int
    length: int
    key: str | None = None
    source: int = 0


def plan(size: int, pieces: Sequence[Piece], keys: Sequence[str], part_bytes: int) -> list[Part]:
    """The parts of a file of `size` bytes, in order; the same for the same arguments.

    `pieces` say what objects under `keys` have of it. What is sent between two copies is filled up to the
    least size of a part with bytes that could be copied; a copy that is then too short is sent. `part_bytes`
    is the size of the parts that are sent, and grows where there would be too many.
    """
    least = LEAST
    part_bytes = max(part_bytes, -(-size // (_MOST_PARTS // 2)))
    while True:
        found = list(_split(_runs(size, pieces, keys, least), size, part_bytes))
        if len(found) <= _MOST_PARTS:
            return found or [Part(0, 0)]
        least *= 2


def _runs(size: int, pieces: Sequence[Piece], keys: Sequence[str], least: int) -> Iterator[Part]:
    """What is sent and what is copied, as long as it can be."""
    position = 0
    for piece in pieces:
        if piece.held is None:
            continue
        begin, end = piece.target, piece.target + piece.length
        if 0 < begin - position < least:
            begin = position + least
        if end - begin < least:
            continue
        if begin > position:
            yield Part(position, begin - position)
        yield Part(begin, end - begin, keys[piece.held], piece.source + begin - piece.target)
        position = end
    if position < size:
        yield Part(position, size - position)


def _split(runs: Iterator[Part], size: int, part_bytes: int) -> Iterator[Part]:
    """Parts of allowed sizes: what is copied in equal ones, what is sent in pieces of `part_bytes`."""
    for run in runs:
        if run.key is None:
            borders = [*range(0, run.length, part_bytes), run.length]
            if run.begin + run.length < size and borders[-1] - borders[-2] < LEAST < run.length:
                del borders[-2]
        else:
            count = -(-run.length // _LARGEST)
            borders = [run.length * number // count for number in range(count + 1)]
        for begin, end in itertools.pairwise(borders):
            yield Part(run.begin + begin, end - begin, run.key, run.source + begin)
