"""Expanding every byte of a squashfs file or a layer pack, with several threads, in the order of the disk."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from isal import isal_zlib

from pipeline.squashfs.blocks import Span, cut_tail, read_fragment, read_span
from pipeline.squashfs.codecs import Expand, make_expand
from pipeline.squashfs.inode import NO_FRAGMENT, Inode, Kind
from pipeline.squashfs.reader import SquashfsImage
from pipeline.squashfs.superblock import Compressor
from pipeline.system.parallel import CancelToken, Crew

OnFile = Callable[[int, int], None]  # number, crc32 of the whole content


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """A file with blocks of its own; `tail`: the fragment that its end lies in, offset and length."""

    number: int
    spans: Callable[[], Iterable[Span]]
    tail: tuple[Span, int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tails:
    """The files that lie in one fragment: number, offset and size of each."""

    span: Span
    files: list[tuple[int, int, int]] = field(default_factory=list)


Job = tuple[int, Blocks | Tails]  # with the position where it reads


def read_all(
    image: SquashfsImage, on_file: OnFile, *, workers: int = 0, inodes: Sequence[Inode] | None = None
) -> None:
    """Read every file once and call ``on_file(inode.number, crc32)``, in no order, one call at a time.

    `inodes` spares a second walk when the caller has them; hard links may appear more than once in it.
    `workers` 0 means one a core. FormatError at the first damaged block.
    """
    found = [inode for _, inode in image.walk()] if inodes is None else inodes
    unique = {inode.number: inode for inode in found if inode.kind is Kind.FILE}
    expand_all(
        image.descriptor,
        image.name,
        image.superblock.compressor,
        _jobs(image, unique.values()),
        on_file,
        workers=workers,
    )


def _jobs(image: SquashfsImage, inodes: Iterable[Inode]) -> Iterator[Job]:
    """Files with blocks singly, the others by fragment."""
    tails: dict[int, Tails] = {}
    for inode in inodes:
        number, fragment, at = inode.number, inode.fragment, (inode.offset, inode.size)
        if fragment == NO_FRAGMENT:
            yield inode.start, Blocks(number=number, spans=_spans(image, inode))
        elif inode.words:
            tail = (image.fragment_span(fragment), at[0], at[1] % image.superblock.block_size)
            yield inode.start, Blocks(number=number, spans=_spans(image, inode), tail=tail)
        else:
            if fragment not in tails:
                tails[fragment] = Tails(span=image.fragment_span(fragment))
            tails[fragment].files.append((number, *at))
    for shared in tails.values():
        yield shared.span.position, shared


def _spans(image: SquashfsImage, inode: Inode) -> Callable[[], Iterable[Span]]:
    return lambda: image.spans(inode)


def expand_all(
    descriptor: int,
    name: str,
    compressor: Compressor,
    jobs: Iterable[Job],
    on_file: OnFile,
    *,
    workers: int = 0,
    cancel: CancelToken | None = None,
) -> None:
    """Do all `jobs` in the open file `descriptor`, in the order of their positions; see `read_all`.

    `name` is what messages call the file. StoppedError when `cancel` is set.
    """
    reader = _Reader(descriptor, name, on_file, cancel or CancelToken())
    count = workers or os.cpu_count() or 1
    source: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in sorted(jobs, key=lambda job: job[0]):
        source.put(job)
    with Crew(count, name="expand") as crew:
        try:
            for future in [crew.submit(reader.run, source, compressor) for _ in range(count)]:
                future.result()
        except BaseException:
            reader.stop()
            raise


class _Reader:
    def __init__(self, descriptor: int, name: str, on_file: OnFile, cancel: CancelToken) -> None:
        self._descriptor = descriptor
        self._name = name
        self._on_file = on_file
        self._halt = cancel
        self._lock = threading.Lock()
        self._failed = False

    def stop(self) -> None:
        """End all threads after the block that each reads."""
        self._failed = True

    def run(self, source: queue.SimpleQueue[Job], compressor: Compressor) -> None:
        expand = make_expand(compressor)
        try:
            while not self._failed:
                self._halt.check()
                _, job = source.get_nowait()
                if isinstance(job, Tails):
                    self._tails(job, expand)
                else:
                    self._file(job, expand)
        except queue.Empty:
            return
        except BaseException:
            self._failed = True
            raise

    def _tails(self, job: Tails, expand: Expand) -> None:
        plain = read_fragment(self._descriptor, job.span, expand, self._name)
        sums = [
            (number, isal_zlib.crc32(cut_tail(plain, offset, size, self._name)))
            for number, offset, size in job.files
        ]
        with self._lock:
            for each in sums:
                self._on_file(*each)

    def _file(self, job: Blocks, expand: Expand) -> None:
        checksum = 0
        for span in job.spans():
            if self._failed:
                return
            checksum = isal_zlib.crc32(read_span(self._descriptor, span, expand, self._name), checksum)
        if job.tail is not None:
            span, offset, length = job.tail
            plain = read_fragment(self._descriptor, span, expand, self._name)
            checksum = isal_zlib.crc32(cut_tail(plain, offset, length, self._name), checksum)
        with self._lock:
            self._on_file(job.number, checksum)


def checksums(path: Path, *, workers: int = 0) -> dict[int, int]:
    """The crc32 of every file in the squashfs file at `path`, by inode number."""
    found: dict[int, int] = {}
    with SquashfsImage.open(path) as image:
        read_all(image, found.__setitem__, workers=workers)
    return found
