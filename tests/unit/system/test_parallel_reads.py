"""Questions asked in threads, and a signal that ends the command while one of them is never answered."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.system.parallel_reads import each
from tests.support.store.releases import new_store


def test_results_come_in_order_from_no_more_threads_than_allowed() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def one(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01 * (5 - number % 5))
        with lock:
            running -= 1
        return number * number

    assert each(one, range(20), workers=3) == [number * number for number in range(20)]
    assert most <= 3
    assert each(one, [], workers=3) == []


def test_a_failure_is_raised_without_waiting_for_the_others() -> None:
    never = threading.Event()
    asked = []

    def one(number: int) -> None:
        asked.append(number)
        if number == 0:
            raise ValueError("the first")
        never.wait(30)

    began = time.monotonic()
    with pytest.raises(ValueError, match="the first"):
        each(one, range(50), workers=2)
    assert time.monotonic() - began < 5
    never.set()
    time.sleep(0.1)
    assert len(asked) < 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("verb", [["plan"], ["lock"], ["refresh"], ["doctor"]], ids=" ".join)
def test_one_signal_ends_a_command_that_waits_for_a_silent_server(
    verb: list[str], number: signal.Signals, tmp_path: Path
) -> None:
    new_store(tmp_path / "store")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        (tmp_path / "images.yaml").write_text(
            f"version: 1\nregistry: {{url: {address}/x}}\nstore: {{root: {tmp_path}/store}}\n"
            f"images:\n  demo: {{base: '{address}/base:1'}}\n  more: {{base: '{address}/more:1'}}\n"
        )
        running = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *verb],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            silent.settimeout(60)
            connection, _ = silent.accept()  # it has asked, and gets no answer
            with connection:
                time.sleep(0.3)
                running.send_signal(number)
                assert running.wait(15) == 128 + number
        finally:
            running.kill()
            running.wait()
