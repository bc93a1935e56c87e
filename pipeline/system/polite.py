"""Work that waits while other processes want the processors."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

from pipeline.system.parallel import CancelToken

_EVERY = 2.0  # seconds of work between two looks
_LOOK = 0.25  # seconds without work, in which it is seen what the others take
_MUCH = 0.75  # of all processors
_TICKS = os.sysconf("SC_CLK_TCK")


def lowest_priority() -> None:
    """Let the calling thread, and those that it starts, run after all others of its control group."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


class PoliteHalt(CancelToken):
    """A halt whose `check` also waits while the others keep most processors busy.

    A low priority alone does not do: the steps of a build run in control groups of their own, and each group
    gets its share whatever the priorities in it are.
    """

    def __init__(self, outer: CancelToken) -> None:
        super().__init__(outer)
        self._lock = threading.Lock()
        self._next = 0.0

    def check(self) -> None:
        super().check()
        if time.monotonic() < self._next:
            return
        with self._lock:
            while time.monotonic() >= self._next:
                if _share_of_others(_LOOK) < _MUCH:
                    self._next = time.monotonic() + _EVERY
                super().check()


def _share_of_others(seconds: float) -> float:
    """How much of all processors others take within the next `seconds`; 0 where that cannot be seen."""
    before = _ticks()
    time.sleep(seconds)
    after = _ticks()
    busy, total = (new - old for new, old in zip(after, before, strict=True))
    return busy / total if total > 0 else 0.0


def _ticks() -> tuple[float, float]:
    """Time of the processors that this process may use: what all others took, and all that there was."""
    mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    busy = total = 0
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
            name, *fields = line.split()
            if name in mine:
                user, nice, system, idle, waiting, *rest = map(int, fields[:8])
                busy += user + nice + system + sum(rest)
                total += user + nice + system + sum(rest) + idle + waiting
    return busy - time.process_time() * _TICKS, total
