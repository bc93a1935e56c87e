"""Kill or fail a process at each of its file-system calls in turn, with strace's fault injection
(strace(1), -e inject).

Every point is a process of its own, forked from one that has everything imported, and stopped until strace
holds it; so a point costs what the action costs, and thousands of them are an evening's work no longer.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.faults.crash_actions import BEGIN, END

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
_SECONDS = 180


@dataclass(frozen=True, slots=True)
class Point:
    """The `when`-th call of `call` in the process, and what happens there: "KILL" or the name of an error."""

    call: str
    when: int
    fault: str
    shown: str

    def __str__(self) -> str:
        return f"{self.fault} at {self.call} #{self.when}: {self.shown[-120:]}"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: its exit code, or minus the signal's number; and what it said."""

    returncode: int
    stderr: str


class Nursery:
    """A process that forks one child for each action; used by one thread at a time."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-X", "utf8", "-B", "-m", "tests.support.faults.crash_actions"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """End it; no child of it is left then."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(_SECONDS)
        self._server.stdout.close()

    def run(self, action: str, root: Path, tracing: Sequence[str]) -> Ended:
        """Run the action under ``strace TRACING``, which sees it from its first call on."""
        assert self._server.stdin is not None
        said = root.with_name(f"{root.name}.stderr")
        self._server.stdin.write(f"{action}\t{root}\t{said}\n")
        self._server.stdin.flush()
        child = int(self._line())
        _until_stopped(child)
        strace = subprocess.Popen(["strace", *tracing, "-p", str(child)], stderr=subprocess.PIPE)
        assert strace.stderr is not None
        try:
            reported = strace.stderr.readline()
            assert b"attached" in reported, reported
            os.kill(child, signal.SIGCONT)
            returncode = int(self._line())
            strace.wait(_SECONDS)
        except BaseException:
            for one in (child, strace.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
            strace.wait()
            raise
        finally:
            strace.stderr.close()
        return Ended(returncode, said.read_text(errors="replace"))

    def _line(self) -> str:
        assert self._server.stdout is not None
        ready, _, _ = select.select([self._server.stdout], [], [], _SECONDS)
        assert ready, "the action does not end"
        return self._server.stdout.readline()


def _until_stopped(child: int) -> None:
    deadline = time.monotonic() + _SECONDS
    while Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline
        time.sleep(0.001)


def calls(
    nursery: Nursery, action: str, root: Path, log: Path, *, more: Sequence[str] = ()
) -> list[tuple[str, int, str]]:
    """Every file-system call of an undisturbed run between the markers: (call, its number, what strace
    shows). `more` are calls to look for beside those that change or look at files.
    """
    looked_for = (*CHANGING, *LOOKING, "access", "faccessat", "faccessat2", *more)
    traced = ",".join(f"?{call}" for call in looked_for)
    done = nursery.run(action, root, ["-o", str(log), "-e", f"trace={traced}"])
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


def run_with(nursery: Nursery, point: Point, action: str, root: Path) -> Ended:
    """Run the action with the fault at that point."""
    fault = "signal=SIGKILL" if point.fault == "KILL" else f"error={point.fault}"
    tracing = ["-o", "/dev/null", "-e", f"trace={point.call}"]
    return nursery.run(action, root, [*tracing, "-e", f"inject={point.call}:{fault}:when={point.when}"])
