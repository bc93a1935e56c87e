from __future__ import annotations

import _thread
import contextlib
import threading
import time
from concurrent.futures import Future

import pytest

from pipeline.system.parallel import PATIENCE, CancelToken, Crew, run_all


def test_results_come_in_the_order_of_the_tasks() -> None:
    def task(number: int) -> int:
        time.sleep(0.02 * (3 - number))
        return number

    assert run_all([lambda _, n=n: task(n) for n in range(4)], workers=4) == [0, 1, 2, 3]
    assert run_all([], workers=4) == []


def test_no_more_at_once_than_asked_for() -> None:
    lock, running, most = threading.Lock(), 0, 0

    def task(_halt: CancelToken) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1

    run_all([task] * 6, workers=2)
    assert most == 2


class BrokenError(Exception):
    pass


def test_the_first_failure_stops_the_others_and_is_raised() -> None:
    stopped = threading.Event()

    def endless(cancel: CancelToken) -> None:
        try:
            while True:
                cancel.check()
                time.sleep(0.005)
        finally:
            stopped.set()

    def failing(_halt: CancelToken) -> None:
        raise BrokenError

    started = time.monotonic()
    with pytest.raises(BrokenError):
        run_all([endless, failing, *[endless] * 5], workers=2)
    assert stopped.is_set()
    assert time.monotonic() - started < 5


def test_ctrl_c_stops_all_and_is_raised() -> None:
    ended = threading.Event()

    def endless(cancel: CancelToken) -> None:
        time.sleep(0.1)
        _thread.interrupt_main()
        try:
            while True:
                cancel.check()
                time.sleep(0.005)
        finally:
            ended.set()

    with pytest.raises(KeyboardInterrupt):
        run_all([endless], workers=1)
    assert ended.is_set()


def test_a_signal_leaves_behind_a_thread_that_waits_for_ever() -> None:
    """As one does that reads from a server that never answers."""
    began, never = threading.Event(), threading.Event()

    def deaf(_halt: CancelToken) -> None:
        began.set()
        never.wait(60)

    def interrupt() -> None:
        began.wait(10)
        _thread.interrupt_main()

    threading.Thread(target=interrupt).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_all([deaf] * 3, workers=2)
    assert time.monotonic() - started < PATIENCE + 5
    never.set()


def test_what_has_not_begun_when_an_error_comes_is_cancelled_and_what_has_is_waited_for() -> None:
    ended = []

    def task(number: int) -> None:
        time.sleep(0.2)
        ended.append(number)

    def two() -> Future[None]:
        with contextlib.suppress(BrokenError), Crew(1, name="test") as crew:
            first, second = crew.submit(task, 1), crew.submit(task, 2)
            while not first.running():
                time.sleep(0.01)
            raise BrokenError
        return second

    second = two()
    assert ended == [1]
    assert second.cancelled()


def test_one_thread_is_enough_where_there_can_be_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    start, count = threading.Thread.start, 0

    def limited(self: threading.Thread) -> None:
        nonlocal count
        count += 1
        if count > limit:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", limited)
    limit = 1
    assert run_all([lambda _, n=n: n for n in range(5)], workers=4) == list(range(5))
    limit = 0
    with pytest.raises(RuntimeError, match="new thread"):
        run_all([lambda _: 1], workers=4)
