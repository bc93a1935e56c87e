"""Threads that compress blocks, several blocks a job, results taken in the order of the caller's choice.

The codecs release the interpreter's lock, so that these threads use all cores; a job is large enough that
taking the lock back between jobs costs nothing that can be measured.
"""

from __future__ import annotations

import functools
import os
import queue
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING

from isal import isal_zlib

from pipeline.squashfs.blocks import RAW
from pipeline.squashfs.codecs import Codec, CompressMany, Plain, Stored
from pipeline.system.parallel import by_signal

if TYPE_CHECKING:
    from typing_extensions import Self

JOB_SIZE = 1 << 20  # plain bytes after which a job is handed over


class BlockJob:
    """Some blocks that are being compressed; an empty one is a hole and stays empty.

    After `wait`: `words` and `sums`, the crc32 of each stored block (both 0 for a hole), `parts` the stored
    blocks in a row, `length` their bytes. They are not joined: a copy of every stored byte, made under the
    interpreter's lock, would cost more than anything else except compressing.
    """

    __slots__ = ("_done", "_failure", "blocks", "length", "parts", "sums", "words")

    def __init__(self, blocks: list[Plain]) -> None:
        self.blocks = blocks
        self.words: list[int] = []
        self.parts: list[Stored] = []
        self.sums: list[int] = []
        self.length = 0
        self._failure: BaseException | None = None
        self._done = threading.Lock()
        self._done.acquire()

    @property
    def done(self) -> bool:
        """Whether `wait` returns at once."""
        return not self._done.locked()

    def wait(self) -> BlockJob:
        with self._done:
            if self._failure is not None:
                raise self._failure
            return self

    def run(self, compress: CompressMany) -> None:
        """Compress on the calling thread and let `wait` return."""
        try:
            stored = iter(compress([block for block in self.blocks if block]))
            words, sums, parts = self.words, self.sums, self.parts
            for block in self.blocks:
                if not block:
                    words.append(0)
                    sums.append(0)
                    continue
                part, length = next(stored), len(block)
                if len(part) < length:
                    length = len(part)
                    words.append(length)
                else:
                    part = block
                    words.append(length | RAW)
                parts.append(part)
                self.length += length
                sums.append(isal_zlib.crc32(part))
            self.blocks = []
        except BaseException as failure:  # noqa: BLE001 - it is raised again where the job is waited for
            self._failure = failure
        finally:
            self._done.release()


class Compressors:
    """A context manager around the threads. `workers` 0 means one a core."""

    def __init__(self, codec: Codec, *, workers: int = 0) -> None:
        self.codec = codec
        self.workers = workers or len(os.sched_getaffinity(0))
        self._jobs: queue.SimpleQueue[BlockJob | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"compress-{number}", daemon=True)
            for number in range(self.workers)
        ]

    def submit(self, blocks: list[Plain]) -> BlockJob:
        job = BlockJob(blocks)
        self._jobs.put(job)
        return job

    def _run(self) -> None:
        try:
            compress = self.codec.make_compress_many()
        except BaseException as failure:  # noqa: BLE001 - no memory for a context: for each who waits
            compress = functools.partial(_fail, failure)
        while (job := self._jobs.get()) is not None:
            job.run(compress)

    def __enter__(self) -> Self:
        started: list[threading.Thread] = []
        for thread in self._threads:
            try:
                thread.start()
            except RuntimeError:  # no more threads than this for us
                if not started:
                    raise
                break
            started.append(thread)
        self._threads = started
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _ in self._threads:
            self._jobs.put(None)
        if by_signal(kind):
            return  # all that waits to be compressed would come first; the threads end with the process
        for thread in self._threads:
            thread.join()


def _fail(failure: BaseException, _: list[Plain]) -> Iterable[Stored]:
    raise failure
