"""Reading every byte of a squashfs file back, with several threads, in the order in which it lies on disk."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from isal import isal_zlib

from pipeline.squashfs.blocks import Span, read_fragment, read_span
from pipeline.squashfs.codecs import Expand, make_expand
from pipeline.squashfs.inode import NO_FRAGMENT, Inode, Kind
from pipeline.squashfs.reader import SquashfsImage
from pipeline.system.parallel import Crew

OnFile = Callable[[int, int], None]  # inode number, crc32 of the whole content


@dataclass(slots=True, kw_only=True)
class _Tails:
    """The files whose ends share one fragment block."""

    span: Span
    files: list[Inode] = field(default_factory=list)


def read_all(
    image: SquashfsImage, on_file: OnFile, *, workers: int = 0, inodes: Sequence[Inode] | None = None
) -> int:
    """Read every file once and tell ``on_file(inode.number, crc32)``, in no order, one call at a time.

    `inodes` spares a second walk when the caller has them; hard links may appear more than once in it.
    `workers` 0 means one a core. Returns how many plain bytes were read. FormatError at the first
    damaged block.
    """
    unique = {inode.number: inode for inode in (inodes or _walked(image)) if inode.kind is Kind.FILE}
    reader = _Reader(image, on_file)
    jobs = sorted(_jobs(image, list(unique.values())), key=lambda job: job[0])
    count = workers or os.cpu_count() or 1
    source: queue.SimpleQueue[tuple[int, list[Inode] | _Tails]] = queue.SimpleQueue()
    for job in jobs:
        source.put(job)
    with Crew(count, name="readback") as crew:
        try:
            for future in [crew.submit(reader.run, source) for _ in range(count)]:
                future.result()
        except BaseException:
            reader.stop()
            raise
    return reader.total


def _walked(image: SquashfsImage) -> list[Inode]:
    return [inode for _, inode in image.walk()]


def _jobs(image: SquashfsImage, inodes: list[Inode]) -> Iterator[tuple[int, list[Inode] | _Tails]]:
    """Work with the position where it reads: files with blocks singly, the others by fragment."""
    tails: dict[int, _Tails] = {}
    for inode in inodes:
        if inode.words or inode.fragment == NO_FRAGMENT:
            yield inode.start, [inode]
            continue
        shared = tails.get(inode.fragment)
        if shared is None:
            shared = tails[inode.fragment] = _Tails(span=image.fragment_span(inode.fragment))
        shared.files.append(inode)
    for shared in tails.values():
        yield shared.span.position, shared


class _Reader:
    def __init__(self, image: SquashfsImage, on_file: OnFile) -> None:
        self._image = image
        self._on_file = on_file
        self._lock = threading.Lock()
        self._failed = False
        self.total = 0

    def stop(self) -> None:
        """End all threads after the file that each reads."""
        self._failed = True

    def run(self, source: queue.SimpleQueue[tuple[int, list[Inode] | _Tails]]) -> None:
        expand = make_expand(self._image.superblock.compressor)
        try:
            while not self._failed:
                _, job = source.get_nowait()
                if isinstance(job, _Tails):
                    self._tails(job, expand)
                else:
                    for inode in job:
                        self._file(inode, expand)
        except queue.Empty:
            return
        except BaseException:
            self._failed = True
            raise

    def _tails(self, job: _Tails, expand: Expand) -> None:
        image = self._image
        plain = read_fragment(image.descriptor, job.span, expand, image.name)
        sums = [
            (inode.number, isal_zlib.crc32(image.cut(plain, inode.offset, inode.size)), inode.size)
            for inode in job.files
        ]
        with self._lock:
            for number, checksum, size in sums:
                self.total += size
                self._on_file(number, checksum)

    def _file(self, inode: Inode, expand: Expand) -> None:
        image = self._image
        checksum = 0
        for span in image.spans(inode):
            if self._failed:
                return
            checksum = isal_zlib.crc32(read_span(image.descriptor, span, expand, image.name), checksum)
        if inode.fragment != NO_FRAGMENT:
            plain = read_fragment(image.descriptor, image.fragment_span(inode.fragment), expand, image.name)
            tail = image.cut(plain, inode.offset, inode.size % image.superblock.block_size)
            checksum = isal_zlib.crc32(tail, checksum)
        with self._lock:
            self.total += inode.size
            self._on_file(inode.number, checksum)


def checksums(path: Path, *, workers: int = 0) -> dict[int, int]:
    """The crc32 of every file in the squashfs file at `path`, by inode number."""
    found: dict[int, int] = {}
    with SquashfsImage.open(path) as image:
        read_all(image, found.__setitem__, workers=workers)
    return found
