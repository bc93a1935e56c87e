"""Sparse files in tars: GNU's old format and its PAX formats 0.0, 0.1 and 1.0.

See "Sparse Formats" in the GNU tar manual.

A map is a tuple of (offset, length) of the stretches that are stored, ascending; all else is zero bytes. The
stored stretches follow each other in the archive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.errors import FormatError
from pipeline.oci.pax import number

SparseMap = tuple[tuple[int, int], ...]
MAX_STRETCHES = 1 << 20
_DIGITS = 20


def checked(stretches: Sequence[tuple[int, int]], size: int, stored: int) -> SparseMap:
    """The map without empty stretches. FormatError unless it fits `size` and has `stored` bytes in all."""
    end = total = 0
    for offset, length in stretches:
        if offset < end:
            raise FormatError("a sparse file has a map whose stretches overlap or go back")
        end = offset + length
        total += length
    if end > size:
        raise FormatError(f"a sparse file has a map that ends at {end}, beyond its size of {size}")
    if total != stored:
        raise FormatError(f"a sparse file has a map of {total} bytes but {stored} bytes stored")
    return tuple(stretch for stretch in stretches if stretch[1])


def from_records(records: Sequence[tuple[bytes, bytes]]) -> list[tuple[int, int]] | None:
    """The map of format 0.0 or 0.1 from GNU.sparse.* records; None if they hold no map (format 1.0)."""
    numbers: list[int] = []
    for key, value in records:
        if key == b"map":
            numbers = [number(part, "a sparse map") for part in value.split(b",")] if value else []
        elif key in (b"offset", b"numbytes"):
            if (key == b"offset") != (len(numbers) % 2 == 0):
                raise FormatError("a sparse file has offsets and lengths that do not pair")
            numbers.append(number(value, "a sparse map"))
    if not any(key in (b"map", b"numblocks", b"offset") for key, _ in records):
        return None
    count = dict(records).get(b"numblocks")
    if len(numbers) % 2 or (count is not None and number(count, "numblocks") != len(numbers) // 2):
        raise FormatError("a sparse file has a map with another number of stretches than it says")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def from_data(take: Callable[[int], bytes]) -> tuple[list[tuple[int, int]], int]:
    """The map of format 1.0 that stands before the data, and how many bytes it takes there.

    `take(512)` gives the next block. Decimal numbers, a line each: how many stretches, then offset and
    length of each; padded to a whole block.
    """
    rest = b""
    used = 0
    numbers: list[int] = []
    wanted = 1
    while len(numbers) < wanted:
        used += 512
        *lines, rest = (rest + take(512)).split(b"\n")
        for line in lines:
            if len(numbers) == wanted:
                break
            numbers.append(number(line, "a sparse map"))
            if len(numbers) == 1:
                wanted += 2 * numbers[0]
        if wanted > 2 * MAX_STRETCHES or (len(rest) > _DIGITS and len(numbers) < wanted):
            raise FormatError("a sparse file has a map that is too long, or no list of numbers")
    pairs = numbers[1:]
    return list(zip(pairs[::2], pairs[1::2], strict=True)), used


def from_old_header(
    block: bytes, take: Callable[[], bytes], read: Callable[[bytes], int]
) -> list[tuple[int, int]]:
    """The map of GNU's old format: 4 stretches in the header, 21 in each block that `take` gives after it.

    `read` turns a 12-byte field into a number.
    """
    stretches: list[tuple[int, int]] = []

    def gather(data: bytes, start: int, count: int) -> None:
        for position in range(start, start + 24 * count, 24):
            if not data[position]:
                return
            stretches.append(
                (read(data[position : position + 12]), read(data[position + 12 : position + 24]))
            )

    gather(block, 386, 4)
    more = block[482]
    while more:
        if len(stretches) > MAX_STRETCHES:
            raise FormatError(f"a sparse file has a map of more than {MAX_STRETCHES} stretches")
        data = take()
        gather(data, 0, 21)
        more = data[504]
    return stretches
