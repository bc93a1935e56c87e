"""Commands of a benchmark, and what they cost."""

from __future__ import annotations

import resource
import subprocess
import time
from collections.abc import Callable
from typing import Any


def shell(*argv: object, **more: Any) -> str:
    command = [str(word) for word in argv]
    return subprocess.run(command, check=True, capture_output=True, text=True, **more).stdout


def measured(work: Callable[[], object]) -> dict[str, float]:
    """Wall and CPU seconds of work in other processes; on a busy machine the second is the fairer one."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    work()
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"wall_s": wall, "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}
