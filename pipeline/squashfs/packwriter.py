"""Packing: from the entries of one layer to compressed blocks, fragments and their index.

The bytes depend on the entries, the codec and the block size alone: jobs are cut by what was added, never by
time, and are written in the order in which they were cut.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable
from hashlib import sha256
from typing import Any, Protocol

from pipeline.errors import FormatError
from pipeline.squashfs.blocks import LENGTH
from pipeline.squashfs.codecs import Plain, Stored
from pipeline.squashfs.compressors import JOB_SIZE, BlockJob, Compressors
from pipeline.squashfs.inode import Kind
from pipeline.squashfs.packindex import DIGEST_SIZE, PackIndex

Read = Callable[[int], Plain]  # up to that many bytes of an entry's content; fewer only at its end
Write = Callable[[list[Stored]], None]  # appends to the pack, one after the other

_NEXT, _FRAGMENT = -1, -2  # owners of a block that is not the first of a file
_FILE, _DEVICES = Kind.FILE, (Kind.CHAR, Kind.BLOCK)
_NO_DIGEST = bytes(DIGEST_SIZE)


class EntryLike(Protocol):
    """What must be known of an entry of a layer; `crc32` counts after the content was read."""

    @property
    def path(self) -> bytes: ...
    @property
    def kind(self) -> int: ...
    @property
    def mode(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def mtime(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def target(self) -> bytes: ...
    @property
    def major(self) -> int: ...
    @property
    def minor(self) -> int: ...
    @property
    def xattrs(self) -> tuple[tuple[bytes, bytes], ...]: ...
    @property
    def crc32(self) -> int: ...


class PackWriter:
    """Takes entries in the layer's order. Used by one thread; compression happens on others.

    `in_flight` bounds the memory: it is the number of jobs (1 MiB or one block each) that may be unfinished.
    """

    def __init__(
        self,
        write: Write,
        compressors: Compressors,
        *,
        block_size: int,
        header: dict[str, Any],
        in_flight: int = 8,
    ) -> None:
        self.index = PackIndex(header=header)
        self._write = write
        self._compressors = compressors
        self._block_size = block_size
        self._in_flight = in_flight
        self._jobs: deque[tuple[BlockJob, list[int]]] = deque()
        self._blocks: list[Plain] = []
        self._owners: list[int] = []
        self._waiting = 0
        self._position = 0
        self._fragment = bytearray()
        self._fragment_count = 0
        self._word_count = 0
        self._append = _appenders(self.index)
        self._tails: dict[bytes, tuple[int, int]] = {}
        self._zeros = bytes(block_size)

    def add(self, entry: EntryLike, read: Read) -> int:
        """Take one entry and all of its content; returns its position among the entries."""
        index = self.index
        number = len(index.paths)
        kind = entry.kind
        size = entry.size if kind == _FILE else 0
        digest, place, detail = _NO_DIGEST, 0, 0
        if size >= self._block_size:
            detail = self._word_count
        elif size:
            digest, place, detail = self._add_tail(size, read)
        path, kinds, mode, uid, gid, mtime, sizes, places, details = self._append
        path(entry.path)
        kinds(kind)
        mode(entry.mode)
        uid(entry.uid)
        gid(entry.gid)
        mtime(entry.mtime)
        sizes(size)
        places(place)
        details(detail)
        index.digests += digest
        if entry.target:
            index.targets[number] = entry.target
        if kind in _DEVICES:
            index.devices[number] = (entry.major, entry.minor)
        if entry.xattrs:
            index.xattrs[number] = entry.xattrs
        if size >= self._block_size:
            self._add_blocks(number, size, read)  # after its row is there: a finished job fills in the place
        index.checksums.append(entry.crc32)
        return number

    def finish(self) -> PackIndex:
        """Write what is under way and return the index, now complete."""
        if self._fragment:
            self._end_fragment()
        self._hand_over()
        while self._jobs:
            self._take_oldest()
        return self.index

    def _add_tail(self, size: int, read: Read) -> tuple[bytes, int, int]:
        content = read(size)
        if len(content) != size:
            raise FormatError(f"a file has {len(content)} bytes of content where {size} were announced")
        digest = sha256(content).digest()[:DIGEST_SIZE]
        found = self._tails.get(digest)
        if found is None:
            if len(self._fragment) + size > self._block_size:
                self._end_fragment()
            found = self._tails[digest] = (self._fragment_count, len(self._fragment))
            self._fragment += content
        return digest, *found

    def _end_fragment(self) -> None:
        self.index.fragment_sizes.append(len(self._fragment))
        self._fragment_count += 1
        self._add_block(self._fragment, _FRAGMENT)
        self._fragment = bytearray()

    def _add_blocks(self, number: int, size: int, read: Read) -> None:
        block_size, zeros = self._block_size, self._zeros
        owner = number
        self._word_count += -(-size // block_size)
        while size:
            block = read(min(block_size, size))
            if not block:
                raise FormatError(f"a file's content ends {size} bytes before its announced end")
            if len(block) < min(block_size, size):
                block = _filled(block, min(block_size, size), read)
            size -= len(block)
            self._add_block(b"" if _is_zero(block, zeros) else block, owner)
            owner = _NEXT

    def _add_block(self, block: Plain, owner: int) -> None:
        self._blocks.append(block)
        self._owners.append(owner)
        self._waiting += len(block) + 64  # holes are not free: a job has an end
        if self._waiting >= JOB_SIZE:
            self._hand_over()

    def _hand_over(self) -> None:
        if not self._blocks:
            return
        jobs = self._jobs
        while jobs and (jobs[0][0].done or len(jobs) >= self._in_flight):  # what is done takes memory
            self._take_oldest()
        jobs.append((self._compressors.submit(self._blocks), self._owners))
        self._blocks, self._owners, self._waiting = [], [], 0

    def _take_oldest(self) -> None:
        job, owners = self._jobs.popleft()
        job.wait()
        index = self.index
        position = self._position
        words: array[int] = index.words
        for owner, word, checksum in zip(owners, job.words, job.sums, strict=True):
            if owner == _FRAGMENT:
                index.fragment_positions.append(position)
                index.fragment_words.append(word)
                index.fragment_sums.append(checksum)
            else:
                words.append(word)
                index.word_sums.append(checksum)
                if owner >= 0:
                    index.places[owner] = position
            position += word & LENGTH
        self._position = position
        if job.length:
            self._write(job.parts)


def _is_zero(block: Plain, zeros: bytes) -> bool:
    """Whether `block` is all zero bytes. A view compares itself byte by byte, 50 times as slowly as bytes."""
    if block[0] or block[-1]:
        return False
    return bytes(block) == (zeros if len(block) == len(zeros) else zeros[: len(block)])


def _appenders(index: PackIndex) -> tuple[Callable[[Any], None], ...]:
    """What appends to the columns that are filled as entries come, looked up once and not for each entry."""
    numbers = (index.modes, index.uids, index.gids, index.mtimes, index.sizes, index.places, index.details)
    return (index.paths.append, index.kinds.append, *(column.append for column in numbers))


def _filled(block: Plain, length: int, read: Read) -> bytes:
    parts = [block]
    have = len(block)
    while have < length:
        more = read(length - have)
        if not more:
            raise FormatError(f"a file's content ends {length - have} bytes before its announced end")
        parts.append(more)
        have += len(more)
    return b"".join(parts)
