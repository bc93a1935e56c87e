from __future__ import annotations

import _thread
import threading
import time

import pytest

from pipeline.system.parallel import Halt, work


def test_results_come_in_the_order_of_the_tasks() -> None:
    def task(number: int) -> int:
        time.sleep(0.02 * (3 - number))
        return number

    assert work([lambda _, n=n: task(n) for n in range(4)], workers=4) == [0, 1, 2, 3]
    assert work([], workers=4) == []


def test_no_more_at_once_than_asked_for() -> None:
    lock, running, most = threading.Lock(), 0, 0

    def task(_halt: Halt) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1

    work([task] * 6, workers=2)
    assert most == 2


class BrokenError(Exception):
    pass


def test_the_first_failure_stops_the_others_and_is_raised() -> None:
    stopped = threading.Event()

    def endless(halt: Halt) -> None:
        try:
            while True:
                halt.check()
                time.sleep(0.005)
        finally:
            stopped.set()

    def failing(_halt: Halt) -> None:
        raise BrokenError

    started = time.monotonic()
    with pytest.raises(BrokenError):
        work([endless, failing, *[endless] * 5], workers=2)
    assert stopped.is_set()
    assert time.monotonic() - started < 5


def test_ctrl_c_stops_all_and_is_raised() -> None:
    ended = threading.Event()

    def endless(halt: Halt) -> None:
        time.sleep(0.1)
        _thread.interrupt_main()
        try:
            while True:
                halt.check()
                time.sleep(0.005)
        finally:
            ended.set()

    with pytest.raises(KeyboardInterrupt):
        work([endless], workers=1)
    assert ended.is_set()
