"""Command lines of sqshpipe within bounds of memory and time, each in a fork of a process that has loaded
it all.

A hundred of them take the time of one start. What is counted is what the kernel counts: a fork ends with its
exit code, its peak memory and its processor time; one that runs past its time is ended and said to hang.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MEMORY = 3 << 30  # of address space, of which threads and malloc's arenas take most without touching it
SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command line ended. ``peak`` is its resident memory at most, in bytes; times are in seconds."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float
    peak: int
    hung: bool


class Bounded:
    """A context manager; ``run`` is `python -m pipeline` with bounds."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self._out, self._err = folder / "stdout", folder / "stderr"
        self._environment = {**os.environ, **(environment or {})}

    def __enter__(self) -> Bounded:  # noqa: PYI034 - Self is not in Python 3.10
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.faults.bounded"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._environment,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=30)

    def run(
        self,
        *words: object,
        env: Mapping[str, str] | None = None,
        memory: int = MEMORY,
        seconds: float = SECONDS,
    ) -> Ended:
        """Run it to its end, or to the end of its time."""
        order = {
            "argv": [str(word) for word in words],
            "env": dict(env or {}),
            "memory": memory,
            "seconds": seconds,
            "stdout": str(self._out),
            "stderr": str(self._err),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        out, err = (path.read_text(errors="backslashreplace") for path in (self._out, self._err))
        return Ended(stdout=out, stderr=err, **answer)


def _child(order: Mapping[str, object]) -> None:
    from pipeline.cli.app import main

    os.setpgid(0, 0)
    for number, key in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(str(order[key]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(order["env"])  # type: ignore[call-overload]
    memory = int(order["memory"])  # type: ignore[call-overload]
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.argv = ["sqshpipe", *order["argv"]]  # type: ignore[misc]
    main()


def _run(order: Mapping[str, object]) -> dict[str, object]:
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            _child(order)
        except SystemExit as ending:
            code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    hung = False
    while True:
        found, status, usage = os.wait4(child, os.WNOHANG)
        if found:
            break
        if time.monotonic() - started > float(order["seconds"]) and not hung:  # type: ignore[arg-type]
            hung = True
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.005)
    return {
        "returncode": os.waitstatus_to_exitcode(status),
        "seconds": time.monotonic() - started,
        "peak": usage.ru_maxrss << 10,
        "hung": hung,
    }


def serve() -> None:
    """Answer orders on stdin, one a line."""
    import boto3  # noqa: F401
    import docker  # noqa: F401
    import typer

    import pipeline.cli.app
    import pipeline.cli.logs
    import pipeline.cli.progress
    import pipeline.cli.tree
    import pipeline.config
    import pipeline.convert.convert
    import pipeline.convert.enroot
    import pipeline.convert.mksquashfs
    import pipeline.convert.native
    import pipeline.convert.sources
    import pipeline.convert.verify

    # Making click's commands of typer's functions takes longer than what most of these do.
    command = typer.main.get_command(pipeline.cli.tree.command_line())
    vars(pipeline.cli.app)["command_line"] = lambda _: command
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)  # noqa: T201 - to the test


if __name__ == "__main__":
    serve()
