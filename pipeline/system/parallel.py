"""Several threads at one task each, of which the first failure stops all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")


class StoppedError(Exception):
    """Raised inside a task when another one failed, and by `work` when its caller has ended the work."""


class Halt:
    """Asked by tasks between two pieces of their work. When `outer` is set, this one counts as set too."""

    def __init__(self, outer: Halt | None = None) -> None:
        self._event = threading.Event()
        self._outer = outer

    def set(self) -> None:
        self._event.set()

    def check(self) -> None:
        """Raise StoppedError when the others want this task to end."""
        if self._event.is_set():
            raise StoppedError
        if self._outer is not None:
            self._outer.check()


def work(tasks: Sequence[Callable[[Halt], T]], *, workers: int, halt: Halt | None = None) -> list[T]:
    """Run all tasks, at most ``workers`` at once, and give back their results in order.

    Each gets a `Halt` that it has to ask now and then. The first exception of a task, or a KeyboardInterrupt
    here, makes the others stop, and is raised when they have. Whoever gave ``halt`` can set it to end the
    work, which then raises StoppedError; it serves several calls, one after the other.
    """
    own = Halt(halt)
    futures: list[Future[T]] = []
    with ThreadPoolExecutor(max(1, min(workers, len(tasks))), thread_name_prefix="crew") as pool:
        try:
            # one by one: a Ctrl-C may come between two of them
            for task in tasks:
                futures.append(pool.submit(task, own))  # noqa: PERF401
            # a bounded wait: a signal is handled between two of them on every platform
            while wait(futures, timeout=0.5, return_when=FIRST_EXCEPTION).not_done:
                if any(future.done() and future.exception() for future in futures):
                    break
        finally:
            own.set()
            for future in futures:
                future.cancel()
    failures = [error for future in futures if not future.cancelled() and (error := future.exception())]
    for error in failures:
        if not isinstance(error, StoppedError):
            raise error
    if failures or any(future.cancelled() for future in futures):
        raise StoppedError
    return [future.result() for future in futures]
