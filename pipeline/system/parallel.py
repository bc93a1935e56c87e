"""Run tasks in several threads. The first failure stops all of them; a signal does not wait for any."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
PATIENCE = 0.5  # seconds that threads have after a signal to see that they shall stop


class StoppedError(Exception):
    """Raised inside a task when another one failed, and by `run_all` when its caller has ended the work."""


class CancelToken:
    """Asks tasks to stop; they check it between two parts of their work. It is set too when `outer` is."""

    def __init__(self, outer: CancelToken | None = None) -> None:
        self._event = threading.Event()
        self._outer = outer

    def set(self) -> None:
        self._event.set()

    def check(self) -> None:
        """Raise StoppedError when this task has to stop."""
        if self._event.is_set():
            raise StoppedError
        if self._outer is not None:
            self._outer.check()


def by_signal(kind: type[BaseException] | None) -> bool:
    """Whether an exception of this type ends the command: a signal's, and no failure of the work."""
    return kind is not None and not issubclass(kind, Exception)


class Crew:
    """A context manager around at most `workers` threads, started when there is something to do.

    It waits for its threads when the block ends, and when an Exception leaves it: what has not begun is
    cancelled then. When a signal ends the command it waits `patience` seconds and leaves the others behind;
    they end with the process. A ThreadPoolExecutor would wait for them, at the end of the program too, and a
    thread that waits for a server that never answers does not see the signal.
    """

    def __init__(self, workers: int, *, name: str, patience: float = PATIENCE) -> None:
        self._workers, self._name, self._patience = max(1, workers), name, patience
        self._threads: list[threading.Thread] = []
        self._todo: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None]
        self._todo = queue.SimpleQueue()
        self._cancelled = False

    def submit(self, function: Callable[..., T], /, *arguments: Any) -> Future[T]:
        """Run `function` in one of the threads. Raises RuntimeError when there can be no thread."""
        future: Future[T] = Future()
        self._todo.put((future, function, arguments))
        if len(self._threads) < self._workers:
            number = len(self._threads)
            thread = threading.Thread(target=self._run, daemon=True, name=f"{self._name}-{number}")
            try:
                thread.start()
            except RuntimeError:  # no more threads than this for us
                if not self._threads:
                    raise
            else:
                self._threads.append(thread)
        return future

    def _run(self) -> None:
        while (task := self._todo.get()) is not None:
            future, function, arguments = task
            if self._cancelled:
                future.cancel()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = function(*arguments)
            except BaseException as error:  # noqa: BLE001 - raised by the thread that asks for the result
                future.set_exception(error)
            else:
                future.set_result(result)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cancelled = kind is not None
        for _ in self._threads:
            self._todo.put(None)
        until = time.monotonic() + self._patience
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()) if by_signal(kind) else None)


def run_all(
    tasks: Sequence[Callable[[CancelToken], T]], *, workers: int, cancel: CancelToken | None = None
) -> list[T]:
    """Run all tasks, at most ``workers`` at once, and return their results in the order of the tasks.

    Each gets a `CancelToken` that it has to check regularly. The first exception of a task makes the
    others stop, and is raised when they have. A signal makes them stop too; see `Crew` for those that do not.
    The caller can set ``cancel`` to end the work, which then raises StoppedError. It serves several
    calls, one after the other.
    """
    own = CancelToken(cancel)
    futures: list[Future[T]] = []
    with Crew(min(workers, len(tasks)), name="crew") as crew:
        try:
            # one by one: a Ctrl-C may come between two of them
            for task in tasks:
                futures.append(crew.submit(task, own))  # noqa: PERF401
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
