"""Job arrays: submit one, and ask where its tasks stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from pipeline.config.types import SlurmSettings
from pipeline.tools import process, slurm

_LASTING = frozenset(
    {"PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STAGE_OUT", "SIGNALING"}
)
_LOST = frozenset({"NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "REVOKED"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskState:
    """Where one task of an array stands; ``node`` is empty before it started."""

    state: str
    node: str

    @property
    def ended(self) -> bool:
        return self.state not in _LASTING

    @property
    def lost(self) -> bool:
        """Ended by the cluster, not by itself: worth another node."""
        return self.state in _LOST


def submit(
    script: Path, indices: Sequence[int], settings: SlurmSettings, limit: int | None, *, exclude: str = ""
) -> str:
    """Submit ``script`` as an array with these ``indices``; gives the job's number. Raises ToolError.

    Slurm must not start a task again by itself (``--no-requeue``): whoever follows the array decides that,
    and sends it to another node.
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
    return slurm.submit(script, options)


def states(job: str) -> dict[int, TaskState]:
    """Each task of array ``job`` by index; empty when Slurm has forgotten it. ToolError when it is silent."""
    argv = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", "--format=%K|%T|%N"]
    said = process.run(argv, check=False, timeout=slurm.ASK_SECONDS)
    if said.returncode != 0 and "Invalid job id" not in said.stderr:
        said = process.run(argv, timeout=slurm.ASK_SECONDS)
    found = {}
    for line in said.stdout.splitlines():
        index, state, node = [*line.strip().split("|"), "", ""][:3]
        if index.isdigit():
            found[int(index)] = TaskState(state=state, node=node)
    return found


def cancel(job: str) -> None:
    """End what is left of array ``job``; a job that is gone already is no error."""
    process.run(["scancel", "--quiet", job], check=False, timeout=slurm.ASK_SECONDS)


def minutes(time: timedelta) -> int:
    """In Slurm's unit, rounded up."""
    return max(1, -int(-time.total_seconds() // 60))
