"""Reading a file once from the disk, in order, with several threads: hashed, its blocks compared."""

from __future__ import annotations

import errno
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Protocol

from isal import isal_zlib

from pipeline.system.disk import NOT_DIRECT, reopened_direct
from pipeline.system.parallel import Crew

Block = tuple[int, int, int]  # position, length in bytes, crc32
_CHUNK = 4 << 20
_READERS = 4
_AHEAD = 8  # chunks in memory
_Chunk = tuple[int, int, list[Block]]  # start, end, and the blocks that lie between them


class Hasher(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...


def reread(
    descriptor: int,
    end: int,
    blocks: Iterable[Block],
    *,
    hasher: Hasher | None = None,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> list[Block]:
    """Read a file from the disk, position 0 to `end`. `hasher` gets all bytes; `on_bytes` may end the work.

    The page cache is not asked: a read through it costs more time here than all checks, and evicts what the
    next step needs.

    `blocks` are in the order of the file, do not overlap and have at most 1 MiB each; those with another
    crc32 are returned. Raises OSError, also when the file is shorter.
    """
    wrong: list[Block] = []
    free = deque(mmap.mmap(-1, _CHUNK + 2 * mmap.PAGESIZE) for _ in range(_AHEAD))
    under_way: deque[tuple[mmap.mmap, Future[tuple[memoryview, list[Block]]]]] = deque()

    def take_oldest() -> None:
        buffer, future = under_way.popleft()
        data, found = future.result()
        wrong.extend(found)
        if hasher is not None:
            hasher.update(data)
        on_bytes(len(data))
        free.append(buffer)

    with reopened_direct(descriptor) as disk, Crew(_READERS, name="reread") as crew:
        for chunk in _chunks(blocks, end):
            if not free:
                take_oldest()
            buffer = free.popleft()
            under_way.append((buffer, crew.submit(_read, disk, descriptor, buffer, chunk)))
        while under_way:
            take_oldest()
    return wrong


def _chunks(blocks: Iterable[Block], end: int) -> Iterator[_Chunk]:
    """The whole file in pieces that fit a buffer and cut no block."""
    start, inside = 0, list[Block]()
    for block in blocks:
        position, length, _ = block
        if position + length - start > _CHUNK:
            yield from _cut(start, position, inside)
            start, inside = position, []
        inside.append(block)
    yield from _cut(start, end, inside)


def _cut(start: int, end: int, inside: list[Block]) -> Iterator[_Chunk]:
    """The blocks lie in the first piece: what is longer than that ends in padding or tables."""
    while start < end:
        stop = min(end, start + _CHUNK)
        yield start, stop, inside
        start, inside = stop, []


def _read(disk: int, descriptor: int, buffer: mmap.mmap, chunk: _Chunk) -> tuple[memoryview, list[Block]]:
    """The bytes of a chunk and its wrong blocks. What cannot be read from `disk` comes from `descriptor`.

    A direct read is refused where the one before it ended inside a page, as it does at the end of a file.
    """
    start, end, blocks = chunk
    first = start - start % mmap.PAGESIZE
    space = memoryview(buffer)[: -(-(end - first) // mmap.PAGESIZE) * mmap.PAGESIZE]
    done = 0
    while first + done < end:
        try:
            count = os.preadv(disk, [space[done:]], first + done)
        except OSError as error:
            if disk == descriptor or error.errno not in NOT_DIRECT:
                raise
            os.posix_fadvise(descriptor, first + done, len(space) - done, os.POSIX_FADV_DONTNEED)
            disk = descriptor
            continue
        if not count:
            raise OSError(errno.EIO, f"the file ends at {first + done}, before {end}")
        done += count
    data = space[start - first : end - first]
    crc32 = isal_zlib.crc32
    wrong = [
        block for block in blocks if crc32(data[block[0] - start : block[0] - start + block[1]]) != block[2]
    ]
    return data, wrong
