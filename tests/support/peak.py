"""The peak memory of a program that a test starts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence

# A small process between the test and the program: the kernel counts a child's peak from its fork, so the
# program's own figure would begin with the memory of the test run, which can be gigabytes.
_LAUNCHER = (
    "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:]).returncode;"
    "print('\\n%d' % resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
)


def with_peak(argv: Sequence[str], *, env: Mapping[str, str]) -> tuple[subprocess.CompletedProcess[str], int]:
    """Run a program to its end; its result, and the most bytes of memory that it had at a time."""
    launched = [sys.executable, "-c", _LAUNCHER, *argv]
    done = subprocess.run(launched, env=env, capture_output=True, text=True, check=False)
    said, _, peak = done.stdout.rstrip().rpartition("\n")
    return subprocess.CompletedProcess(list(argv), done.returncode, said, done.stderr), int(peak) << 10
