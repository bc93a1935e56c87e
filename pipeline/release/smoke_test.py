"""Try a finished .sqsh before a channel names it: the commands of ``test:``, here or on a GPU node."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import VerificationError
from pipeline.progress import NO_TASK, Task
from pipeline.release import start_profile
from pipeline.slurm import client
from pipeline.system import process, self_command
from pipeline.system.log import log
from pipeline.text import said

SECONDS = 1800.0
_LAST_LINES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class SmokeTestResult:
    """A command that did what it should, and how long it took."""

    command: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Where profiles go (an empty folder), and the sha256 of the file that they are of."""

    folder: Path
    sha256: str


def smoke_test(
    path: Path,
    commands: Sequence[str],
    *,
    name: str = "",
    slurm_options: Sequence[str] | None = None,
    timeout: float = SECONDS,
    task: Task = NO_TASK,
    record: Record | None = None,
) -> tuple[SmokeTestResult, ...]:
    """Run each command by ``/bin/sh -c`` inside the image, in the image's environment and working folder.

    With `slurm_options` (``["--partition=gpu", "--gpus=1"]``) each is a step that Slurm places, so that CUDA
    meets a driver; the nodes must then see the path. `timeout` (seconds, each command) includes the
    waiting for Slurm. With `record`, a command here also leaves the profile of its start. Raises
    VerificationError with the last lines of the first command that fails, ToolError when the image cannot be
    mounted.
    """
    tried = []
    for command in commands:
        began = time.monotonic()
        task.line(f"test: {command}")
        if slurm_options is None:
            done = _here(path, command, timeout, record)
        else:
            done = _on_a_node(path, command, slurm_options, timeout)
        if done.returncode != 0:
            raise _failed(name or path.name, command, done)
        tried.append(SmokeTestResult(command=command, seconds=time.monotonic() - began))
        log.debug("test passed", command=command)
    return tuple(tried)


def _here(path: Path, command: str, timeout: float, record: Record | None) -> process.Completed:
    """A command that fails while it is recorded is run again without: its test must not depend on strace."""
    if record is not None and start_profile.can_record():
        profile = record.folder / f"{len(list(record.folder.iterdir())):04d}.json"
        argv = start_profile.recording(path, ["/bin/sh", "-c", command], profile, record.sha256)
        done = process.run(argv, check=False, timeout=timeout)
        if done.returncode == 0:
            return done
        profile.unlink(missing_ok=True)
        log.debug("the test failed while it was recorded: it is run again", command=command)
    return process.run(_inside(path, command), check=False, timeout=timeout)


def _inside(path: Path, command: str) -> list[str]:
    return self_command.verb("run", str(path), "--", "/bin/sh", "-c", command)


def _on_a_node(path: Path, command: str, options: Sequence[str], timeout: float) -> process.Completed:
    places = ["--nodes=1", "--ntasks=1", *options]
    return client.srun(places, _inside(path, command), timeout=timeout, check=False, own_job=True)


def _failed(name: str, command: str, done: process.Completed) -> VerificationError:
    lines = [line for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()][-_LAST_LINES:]
    return VerificationError(
        f"a test of {name} failed with exit code {done.returncode}: {command}",
        details=[f"  | {said(line)}" for line in lines],
        hint="nothing is published; fix the image or its test: in images.yaml",
    )
