"""The threads that compress: what happens to those who wait when something goes wrong in one."""

from __future__ import annotations

import threading
import zlib
from typing import Any, cast

import pytest

from pipeline.squashfs.codecs import Codec, CompressMany
from pipeline.squashfs.compressors import BlockJob, Compressors
from tests.support.waiting import until

BLOCKS = [bytes([number]) * 5000 for number in range(3)]


class OneCodec:
    """Stands for a `Codec`."""

    def __init__(self, many: CompressMany | None) -> None:
        self._many = many

    def make_compress_many(self) -> CompressMany:
        if self._many is None:
            raise MemoryError("no room for a context")
        return self._many


def compressors(many: CompressMany | None, workers: int = 2) -> Compressors:
    return Compressors(cast("Codec", OneCodec(many)), workers=workers)


def result(job: BlockJob) -> BlockJob:
    assert until(lambda: job.done, 10), "nobody works on it"
    return job.wait()


def test_a_thread_that_gets_no_context_fails_its_jobs_instead_of_leaving_them() -> None:
    with compressors(None) as threads:
        jobs = [threads.submit(list(BLOCKS)) for _ in range(5)]
        for job in jobs:
            with pytest.raises(MemoryError, match="no room for a context"):
                result(job)


def test_a_job_that_fails_leaves_the_others_alone() -> None:
    def many(blocks: list[Any]) -> list[bytes]:
        if blocks[0] == b"bad":
            raise ValueError("bad")
        return [zlib.compress(block) for block in blocks]

    with compressors(many) as threads:
        bad, good = threads.submit([b"bad"]), threads.submit(list(BLOCKS))
        with pytest.raises(ValueError, match="bad"):
            result(bad)
        assert [zlib.decompress(part) for part in result(good).parts] == BLOCKS


def test_fewer_threads_than_wanted_do_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    begin, begun = threading.Thread.start, []

    def start(thread: threading.Thread) -> None:
        if begun:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with compressors(lambda blocks: [zlib.compress(block) for block in blocks], workers=4) as threads:
        jobs = [threads.submit(list(BLOCKS)) for _ in range(5)]
        assert [len(result(job).parts) for job in jobs] == [3] * 5


def test_no_thread_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="new thread"), compressors(None):
        pass
