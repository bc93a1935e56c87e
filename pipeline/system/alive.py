"""Whether a process still runs, by its pid and its start time: pids are used again (proc(5))."""

from __future__ import annotations

import os
from pathlib import Path


def start_time(pid: int) -> str:
    """Clock ticks from boot to the start of a process (field 22 of stat); empty when it has ended."""
    state, started = _stat(pid)
    return "" if state in ("Z", "X") else started


def has_ended(pid: int, started: str) -> bool:
    """Whether the process that had ``pid`` and began at ``started`` has ended. A zombie has.

    Where /proc hides the processes of other users (hidepid), one is alive while it can be signalled.
    """
    state, now = _stat(pid)
    if now:
        return now != started or state in ("Z", "X")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _stat(pid: int) -> tuple[str, str]:
    """State and start of a process; both empty where /proc shows none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", ""
    fields = text.rpartition(")")[2].split()
    return fields[0], fields[19]
