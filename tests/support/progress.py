"""Progress that nobody watches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.progress import NO_TASK, Progress, Task


class _NoProgress:
    @contextmanager
    def stage(self, name: str) -> Iterator[Task]:
        yield NO_TASK

    def skip(self, name: str, why: str) -> None:
        pass

    def result(self, text: str) -> None:
        pass


NO_PROGRESS: Progress = _NoProgress()
