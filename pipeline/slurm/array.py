"""Job arrays: submit one, and ask for the states of its tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from pipeline.config.types import SlurmSettings
from pipeline.slurm import client
from pipeline.system import process

_LASTING = frozenset(
    {"PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STAGE_OUT", "SIGNALING"}
)
_LOST = frozenset({"NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "REVOKED"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskState:
    """The state of one task of an array; ``node`` is empty before it starts, ``reason`` says why it waits."""

    state: str
    node: str
    reason: str = ""

    @property
    def ended(self) -> bool:
        return self.state not in _LASTING

    @property
    def lost(self) -> bool:
        """Whether the cluster ended the task (node failure, preemption); it is then tried on another node."""
        return self.state in _LOST

    @property
    def stranded(self) -> bool:
        """Whether it waits for a task that has failed."""
        return self.state == "PENDING" and self.reason == "DependencyNeverSatisfied"


def submit(
    script: Path,
    indices: Sequence[int],
    settings: SlurmSettings,
    limit: int | None,
    *,
    exclude: str = "",
    after: Sequence[str] = (),
) -> str:
    """Submit ``script`` as an array with these ``indices``; gives the job's number. Raises ToolError.

    All its tasks wait until those of ``after`` (``JOB_INDEX``) ended well. Slurm must not start a task again
    by itself, and must not drop one whose base was lost: the caller, who follows the array, decides that.
    """
    spread = ",".join(str(index) for index in indices) + (f"%{limit}" if limit else "")
    options = [f"--array={spread}", "--job-name=sqshpipe", "--no-requeue", "--open-mode=append"]
    options += [f"--output={script.parent / 'slurm-%a.log'}", f"--time={minutes(settings.time)}"]
    options += [f"--cpus-per-task={settings.cpus}", "--ntasks=1"]
    for option in ("partition", "account", "constraint"):
        value = getattr(settings, option)
        options += [f"--{option}={value}"] if value else []
    options += [f"--mem={settings.memory}"] if settings.memory else []
    options += [f"--exclude={exclude}"] if exclude else []
    options += [f"--dependency={_dependency(after)}", "--kill-on-invalid-dep=no"] if after else []
    return client.submit(script, options)


def wait_for(job: str, after: Sequence[str]) -> None:
    """Let the pending tasks of array ``job`` wait for those of ``after``, or for none. Raises ToolError."""
    argv = ["scontrol", "update", f"JobId={job}", f"Dependency={_dependency(after)}"]
    process.run(argv, timeout=client.ASK_SECONDS)


def _dependency(after: Sequence[str]) -> str:
    return ":".join(["afterok", *after]) if after else ""


def states(job: str) -> dict[int, TaskState]:
    """Each task of array ``job`` by index; empty when Slurm no longer knows it. Raises ToolError."""
    argv = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", "--format=%K|%T|%N|%r"]
    said = process.run(argv, check=False, timeout=client.ASK_SECONDS)
    if said.returncode != 0 and "Invalid job id" not in said.stderr:
        said = process.run(argv, timeout=client.ASK_SECONDS)
    found = {}
    for line in said.stdout.splitlines():
        index, state, node, reason = [*line.strip().split("|"), "", "", ""][:4]
        if index.isdigit():
            found[int(index)] = TaskState(state=state, node=node, reason=reason)
    return found


def cancel(job: str) -> None:
    """Cancel the tasks of array ``job`` that have not ended, or one task (``JOB_INDEX``).

    A job that has ended already is not an error.
    """
    process.run(["scancel", "--quiet", job], check=False, timeout=client.ASK_SECONDS)


def minutes(time: timedelta) -> int:
    """``time`` in minutes, the unit of Slurm's ``--time``; rounded up, at least 1."""
    return max(1, -int(-time.total_seconds() // 60))
