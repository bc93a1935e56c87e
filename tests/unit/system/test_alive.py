from __future__ import annotations

import os
import signal
import subprocess

from pipeline.system.alive import has_ended, start_time


def test_a_process_runs_until_it_has_ended() -> None:
    child = subprocess.Popen(["sleep", "60"])
    started = start_time(child.pid)
    assert started.isdecimal()
    assert not has_ended(child.pid, started)
    child.kill()
    child.wait()
    assert has_ended(child.pid, started)
    assert start_time(child.pid) == ""


def test_another_process_of_the_same_number_is_another_process() -> None:
    assert not has_ended(os.getpid(), start_time(os.getpid()))
    assert has_ended(os.getpid(), "1")


def test_a_zombie_writes_nothing_more() -> None:
    child = subprocess.Popen(["sleep", "60"])
    started = start_time(child.pid)
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert has_ended(child.pid, started)
    child.wait()
