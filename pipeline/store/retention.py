"""What to prune and why: pure decisions over states, leases and jobs. No clock, no disk.

A release leaves in two steps: it is hidden, so that nothing new starts from it, and after a time in which the
longest job can have ended it is deleted. Its record stays, so that the version is never used again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from pipeline.store.events import moment
from pipeline.store.leases import Lease
from pipeline.store.state import ImageState, VersionState

KEEP, HIDE, WAIT, DELETE, UNHIDE, GONE = "keep", "hide", "wait", "delete", "unhide", "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How long releases stay. The `keep` newest of each image stay; `per_image` has other numbers."""

    keep: int = 5
    per_image: Mapping[str, int] = field(default_factory=dict)
    named_grace: timedelta = timedelta(days=30)
    """How long a release stays after the last channel stopped naming it."""
    delete_after: timedelta = timedelta(days=14)
    """How long a hidden release keeps its bytes: longer than the longest job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveJobs:
    """What Slurm reports about jobs that have not ended: digests in their comments, and their ids.

    `cluster` is the name of the Slurm cluster.
    """

    digests: frozenset[str] = frozenset()
    ids: frozenset[str] = frozenset()
    cluster: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What prune does with one release, and why. `size` counts the bytes of all its platforms."""

    image: str
    version: str
    action: str
    reason: str
    sha256: tuple[str, ...]
    size: int


def in_use(leases: Iterable[Lease], jobs: LiveJobs | None, now: datetime) -> dict[str, str]:
    """Maps the sha256 of a file to a text that says who uses it.

    Without an answer from Slurm every lease counts that has not expired."""
    used: dict[str, str] = {}
    for lease in leases:
        if lease_counts(lease, jobs, now):
            used.setdefault(lease.sha256, f"leased by {lease.holder()}")
    for digest in jobs.digests if jobs is not None else ():
        used.setdefault(digest, "named by the comment of a Slurm job")
    return used


def lease_counts(lease: Lease, jobs: LiveJobs | None, now: datetime) -> bool:
    """Whether a lease protects its file.

    It does until its job has ended or, where Slurm cannot say that, until it expires.
    """
    if jobs is not None and lease.job and lease.cluster and lease.cluster == jobs.cluster:
        return lease.job in jobs.ids
    return lease.expires > now.timestamp()


def judge(state: ImageState, policy: Policy, used: Mapping[str, str], now: datetime) -> list[Verdict]:
    """A verdict for every release of one image, newest first."""
    count = policy.per_image.get(state.image, policy.keep)
    ordered = state.newest_first()
    newest = [name for name, standing in ordered if standing.resolvable()][:count]
    verdicts = []
    for version, standing in ordered:
        if not standing.platforms:
            continue
        digests = tuple(sorted(held.sha256 for held in standing.platforms.values()))
        stays = _why_it_stays(state, version, standing, policy, now)
        if not stays and version in newest:
            stays = f"one of the newest {count}"
        user = next((used[digest] for digest in digests if digest in used), "")
        action, reason = _action(standing, stays, user, policy, now)
        verdicts.append(
            Verdict(
                image=state.image,
                version=version,
                action=action,
                reason=reason,
                sha256=digests,
                size=sum(held.size for held in standing.platforms.values()),
            )
        )
    return verdicts


def _why_it_stays(
    state: ImageState, version: str, standing: VersionState, policy: Policy, now: datetime
) -> str:
    channels = state.channels_of(version)
    if channels:
        return "named by " + ", ".join(channels)
    if standing.kept:
        return "marked keep"
    if standing.named_until and now - moment(standing.named_until) < policy.named_grace:
        until = _later(standing.named_until, policy.named_grace)
        return f"a channel named it until {standing.named_until[:10]}, so it stays until {until.date()}"
    return ""


def _action(standing: VersionState, stays: str, user: str, policy: Policy, now: datetime) -> tuple[str, str]:
    if standing.pruned:
        return GONE, "deleted before; the version stays taken"
    if standing.hidden_at:
        due = _later(standing.hidden_at, policy.delete_after)
        if stays and standing.kept:
            return UNHIDE, stays
        if user:
            return WAIT, f"hidden, but {user}"
        if now < due:
            return WAIT, f"hidden; deleted after {due.date()}"
        return DELETE, f"hidden since {standing.hidden_at[:10]} and used by nobody"
    if stays or user:
        return KEEP, stays or user
    return HIDE, "yanked and old" if standing.yanked else "older than what is kept"


def _later(text: str, span: timedelta) -> datetime:
    """The moment that lies `span` after another, or the last one that the calendar has."""
    try:
        return moment(text) + span
    except OverflowError:
        return datetime.max.replace(tzinfo=timezone.utc)
