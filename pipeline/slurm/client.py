"""The interface to Slurm: its own commands, with output that programs can read.

The comment of a job says which .sqsh it uses (``sqshpipe:<sha256>``): squeue shows neither a job's
command line nor its environment. When Slurm does not answer, every function here raises ToolError, and a
caller that wants to delete something keeps it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ToolError
from pipeline.system import process

ASK_SECONDS = 60.0  # a busy controller answers late; we must not wait without end for one that has stopped
_COMMENT = re.compile(r"sqshpipe:(?:sha256:)?([0-9a-f]{64})")
_ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
    | {"REVOKED", "TIMEOUT"}
)
_HINT = "run this on a host of the cluster where squeue works, or set SLURM_CONF"
# A user's own defaults for squeue and sinfo would filter or reshape what we read.
_PLACE = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")  # which cluster, and as whom
_PERSONAL = (
    "SQUEUE_",
    "SINFO_",
    "SCONTROL_",
    "SBATCH_",
    "SALLOC_",
    "SRUN_",
    "SLURM_TIME_FORMAT",
    "SLURM_CLUSTERS",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job that is pending, running or ending; `digests` (hex) are the files that its comment names."""

    id: str
    state: str
    uid: int
    nodes: str
    digests: frozenset[str]


def installed() -> bool:
    """Whether this host has Slurm's commands at all."""
    try:
        process.which("squeue", hint="")
    except ToolError:
        return False
    return True


def comment_for(*digests: str) -> str:
    """The comment that makes a job count as a user of the .sqsh files with these digests (hex)."""
    return ",".join(f"sqshpipe:{digest}" for digest in digests)


def jobs() -> tuple[Job, ...]:
    """Every job of every user that has not ended, asked of the controller at once.

    Raises ToolError when Slurm does not answer, and when it would show us our own jobs only (PrivateData).
    """
    settings = config()
    hidden = {word.strip() for word in settings.get("PrivateData", "").lower().split(",")}
    if "jobs" in hidden and os.geteuid() not in _privileged(settings):
        raise ToolError(
            "Slurm shows this user only its own jobs (PrivateData=jobs)",
            hint="run as SlurmUser or root, or make this user an operator's cron job",
        )
    asked = ["squeue", "--noheader", "--all", "--array", "--local", "--format=%A|%T|%U|%N|%k"]
    lines: list[str] = []
    for line in _ask(asked).splitlines():
        if line.count("|") >= 4:
            lines.append(line)
        elif lines:
            lines[-1] += f" {line}"  # a comment of several lines may name a file in any of them
    return tuple(map(_job, lines))


def job_exists(job: str) -> bool:
    """Whether a job (``123`` or ``123_4``) is pending, running or ending.

    Raises ToolError when Slurm does not answer, which is not the same as no.
    """
    if not re.fullmatch(r"\d+(_\d+)?", job):
        return False
    done = process.run(
        ["scontrol", "--oneliner", "show", "job", job],
        env=_clean(),
        check=False,
        timeout=ASK_SECONDS,
        hint=_HINT,
    )
    if done.returncode != 0:
        if "Invalid job id" in done.stderr + done.stdout:
            return False
        raise ToolError(f"Slurm does not answer about job {job}: {done.stderr.strip()}", hint=_HINT)
    states = re.findall(r"\bJobState=([A-Z_]+)", done.stdout)
    return any(state not in _ENDED for state in states)


def config() -> Mapping[str, str]:
    """The settings that ``scontrol show config`` prints, as key and value. Raises ToolError when Slurm does
    not answer.
    """
    found: dict[str, str] = {}
    for line in _ask(["scontrol", "show", "config"]).splitlines():
        key, equals, value = line.partition("=")
        if equals:
            found.setdefault(key.strip(), value.strip())
    return found


def cluster_name() -> str:
    """The name of the cluster that this host talks to. Raises ToolError when Slurm does not answer."""
    return config().get("ClusterName", "")


def hostnames(expression: str) -> tuple[str, ...]:
    """The hosts of a host list (``gpu[1-4],cpu7``), in its order. Raises ToolError when it is not a host
    list.
    """
    return tuple(_ask(["scontrol", "show", "hostnames", expression]).split())


def partition_nodes(partition: str) -> tuple[str, ...]:
    """The hosts of a partition that can take work now, sorted. Raises ToolError for an unknown partition."""
    answer = _ask(
        ["sinfo", "--noheader", "--Node", "--responding", f"--partition={partition}", "--format=%N %T"]
    )
    up = {
        line.split()[0]
        for line in answer.splitlines()
        if not re.search(r"down|drain|fail|maint", line.lower())
    }
    if not up:
        raise ToolError(
            f"partition {partition} has no node that can take work", hint="sinfo lists partitions and nodes"
        )
    return tuple(sorted(up))


def submit(script: Path, options: Sequence[str] = ()) -> str:
    """Submit a job script with sbatch; returns the job's number. Raises ToolError with sbatch's message."""
    answer = _ask(["sbatch", "--parsable", *options, str(script)])
    return answer.strip().splitlines()[-1].partition(";")[0]


def check_script(script: Path, options: Sequence[str] = ()) -> None:
    """Ask sbatch whether it would take this script, without submitting it. Raises ToolError when not."""
    _ask(["sbatch", "--test-only", *options, str(script)])


def srun(
    options: Sequence[str],
    command: Sequence[str],
    *,
    timeout: float | None,
    check: bool = True,
    own_job: bool = False,
) -> process.Completed:
    """Run a command as a job step; `timeout` (seconds) ends srun and so the step. Raises ToolError.

    With `own_job` also inside a job, whose nodes srun would take whatever the options ask for.
    """
    env = _clean()
    if own_job:
        env = {name: value for name, value in env.items() if name in _PLACE or not name.startswith("SLURM")}
    return process.run(["srun", *options, *command], env=env, timeout=timeout, check=check, hint=_HINT)


def _ask(argv: Sequence[str]) -> str:
    return process.run(argv, env=_clean(), timeout=ASK_SECONDS, hint=_HINT).stdout


def _clean() -> dict[str, str]:
    """Our environment without a user's defaults for Slurm's commands."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_PERSONAL)}


def _privileged(settings: Mapping[str, str]) -> set[int]:
    """The uids of root and of SlurmUser, which Slurm writes as ``slurm(64030)``."""
    named = re.search(r"\((\d+)\)", settings.get("SlurmUser", ""))
    return {0, int(named.group(1))} if named else {0}


def _job(line: str) -> Job:
    number, state, uid, nodes, comment = line.split("|", 4)
    return Job(
        id=number,
        state=state,
        uid=int(uid) if uid.isdigit() else -1,
        nodes=nodes,
        digests=frozenset(_COMMENT.findall(comment)),
    )
