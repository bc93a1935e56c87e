"""Kill or fail a process at each of its file-system calls in turn, with strace's fault injection
(strace(1), -e inject).
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.crash_actions import BEGIN, END

CHANGING = (
    *("openat", "write", "fsync", "fchmod", "chmod", "fchmodat", "link", "linkat", "rename", "renameat"),
    *("renameat2", "symlink", "symlinkat", "unlink", "unlinkat", "mkdir", "mkdirat"),
)
LOOKING = (
    "read",
    "newfstatat",
    "stat",
    "lstat",
    "fstat",
    "statx",
    "getdents64",
    "readlink",
    "readlinkat",
    "lseek",
)
ERRORS = {
    "ENOSPC": ("openat", "write", "fsync", "link", "linkat", "rename", "symlink", "symlinkat", "mkdir"),
    "EIO": (*CHANGING, "read", "getdents64", "newfstatat"),
    "EACCES": (
        "openat",
        "link",
        "linkat",
        "rename",
        "symlink",
        "symlinkat",
        "unlink",
        "mkdir",
        "fchmod",
        "chmod",
    ),
}
_CALL = re.compile(r"^(?:\d+ +)?([a-z0-9_]+)\((.*)")
_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Point:
    """The `when`-th call of `call` in the process, and what happens there: "KILL" or the name of an error."""

    call: str
    when: int
    fault: str
    shown: str

    def __str__(self) -> str:
        return f"{self.fault} at {self.call} #{self.when}: {self.shown[-120:]}"


def command(action: str, root: Path) -> list[str]:
    return [sys.executable, "-X", "utf8", "-B", "-m", "tests.support.crash_actions", action, str(root)]


def calls(action: str, root: Path, log: Path) -> list[tuple[str, int, str]]:
    """Every file-system call of an undisturbed run between the markers: (call, its number, what strace
    shows).
    """
    traced = ",".join(f"?{call}" for call in (*CHANGING, *LOOKING, "access", "faccessat", "faccessat2"))
    done = subprocess.run(
        ["strace", "-f", "-o", str(log), "-e", f"trace={traced}", *command(action, root)],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    counted: Counter[str] = Counter()
    found = []
    inside = False
    for line in log.read_text(errors="replace").splitlines():
        match = _CALL.match(line)
        if match is None:
            continue
        counted[match[1]] += 1
        if BEGIN in match[2] or END in match[2]:
            inside = BEGIN in match[2]
        elif inside:
            found.append((match[1], counted[match[1]], match[2]))
    return found


def points(found: Sequence[tuple[str, int, str]], *, everything: bool) -> Iterator[Point]:
    """The points to try: every call killed, and failed in every way that it can fail.

    Without `everything`: killed at each call that changes something, and a full disk at every third of them.
    """
    seen = 0
    for call, when, shown in found:
        changes = call in CHANGING and (call != "openat" or "O_CREAT" in shown)
        if everything or changes:
            yield Point(call, when, "KILL", shown)
        if everything:
            full = changes and call in ERRORS["ENOSPC"]
            for error, at in ERRORS.items():
                if call in at and (full or error != "ENOSPC"):
                    yield Point(call, when, error, shown)
        elif changes and call in ERRORS["ENOSPC"]:
            seen += 1
            if seen % 3 == 0:
                yield Point(call, when, "ENOSPC", shown)


def run_with(point: Point, action: str, root: Path) -> subprocess.CompletedProcess[str]:
    """Run the action with the fault at that point."""
    fault = "signal=SIGKILL" if point.fault == "KILL" else f"error={point.fault}"
    return subprocess.run(
        [
            *("strace", "-f", "--quiet=all", "-o", "/dev/null", "-e", f"trace={point.call}"),
            *("-e", f"inject={point.call}:{fault}:when={point.when}"),
            *command(action, root),
        ],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
