"""Run calls that only read in several threads, and leave them behind when their results are not needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def each(function: Callable[[T], R], items: Iterable[T], *, workers: int) -> list[R]:
    """``function`` of each item, at most ``workers`` at once; results in the order of ``items``.

    The first exception of an item, in that order, is raised here. On it, and on a signal, the threads are
    left behind: a ThreadPoolExecutor would wait for its threads, at the end of the program too, and a thread
    that waits for a dead server or an empty pipe does not see the signal. So ``function`` may only read.
    """
    tasks = [(item, Future[R]()) for item in items]
    todo = iter(tasks)
    next_one = threading.Lock()

    def work() -> None:
        while True:
            with next_one:
                task = next(todo, None)
            if task is None:
                return
            item, future = task
            try:
                result = function(item)
            except BaseException as error:  # noqa: BLE001 - raised by the thread that asks
                future.set_exception(error)
            else:
                future.set_result(result)

    for number in range(min(workers, len(tasks))):
        threading.Thread(target=work, daemon=True, name=f"question-{number}").start()
    try:
        return [future.result() for _, future in tasks]
    finally:
        with next_one:
            todo = iter(())
