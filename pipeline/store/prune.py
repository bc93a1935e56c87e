"""Take away what nobody needs: hide, later delete, and clear up after the dead.

Deleting bytes races with a publisher that brings the same content under a new version at the same moment. So
the bytes are first moved to a temporary name, then the records are read once more, and whatever is needed
after all gets its name back; the publisher looks after its commit too. Nothing that is in doubt is deleted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import structlog

from pipeline.errors import ToolError
from pipeline.store import atomic, caches, channels, exclusive, leases, retention
from pipeline.store.events import Change
from pipeline.store.layout import LINK_SUFFIX, Layout
from pipeline.store.reading import exists, load
from pipeline.store.retention import DELETE, HIDE, UNHIDE, LiveJobs, Policy, Verdict
from pipeline.store.state import ImageState
from pipeline.store.writer import is_orphan, is_temporary, temporary_name

log = structlog.get_logger()
_BLOB = re.compile(r"([0-9a-f]{64})\.sqsh")
_ASIDE = re.compile(r"\.tmp\..*\.([0-9a-f]{64})\.pruned")

AskJobs = Callable[[], LiveJobs]


@dataclass(slots=True, kw_only=True)
class Report:
    """What a prune found and did, or with dry_run would do. Sizes in bytes."""

    verdicts: list[Verdict] = field(default_factory=list)
    files: list[tuple[str, str]] = field(default_factory=list)
    """(path relative to the root, why it goes) of what belongs to no release."""
    blobs: list[str] = field(default_factory=list)
    """sha256 of the bytes that went."""
    freed: int = 0
    unreachable: str = ""
    """Why Slurm could not be asked; then nothing is hidden or deleted."""


def prune(layout: Layout, policy: Policy, ask_jobs: AskJobs, *, dry_run: bool = False) -> Report:
    """Hide and delete what `policy` lets go. With `dry_run` nothing changes, and the report says what would.

    Slurm that cannot be asked (`ask_jobs` raises ToolError) means that no release is hidden or deleted.
    """
    report = Report()
    now = datetime.now(timezone.utc)
    jobs: LiveJobs | None = None
    try:
        jobs = ask_jobs()
    except ToolError as error:
        report.unreachable = error.message
    with atomic.told(f"pruning {layout.root}"):
        used = retention.in_use(leases.read_all(layout), jobs, now)
        states = _states(layout)
        for state in states.values():
            report.verdicts += retention.judge(state, policy, used, now)
        if jobs is None:
            report.verdicts = [_kept_in_doubt(verdict, report.unreachable) for verdict in report.verdicts]
        if dry_run:
            _foresee(layout, states, policy, report, now, in_doubt=jobs is None)
            return report
        for image in _change(layout, report):
            caches.refresh(layout, image)
        if jobs is not None:
            _delete_unused(layout, policy, ask_jobs, report, now)
            _drop_leases(layout, jobs, now)
        _clear_temporaries(layout, report)
        caches.refresh_manifest(layout)
    return report


def _states(layout: Layout) -> dict[str, ImageState]:
    return {image: load(layout, image).state for image in layout.images()}


def _kept_in_doubt(verdict: Verdict, why: str) -> Verdict:
    if verdict.action not in (HIDE, DELETE):
        return verdict
    return Verdict(
        image=verdict.image,
        version=verdict.version,
        action=retention.KEEP,
        reason=f"running jobs are not known ({why})",
        sha256=verdict.sha256,
        size=verdict.size,
    )


def _change(layout: Layout, report: Report) -> set[str]:
    """Make the events of the verdicts; gives the images that changed. Each is decided again on what is
    true now.
    """
    kinds = {HIDE: "hide", DELETE: "delete", UNHIDE: "unhide"}
    changed = set()
    for verdict in report.verdicts:
        if verdict.action not in kinds:
            continue
        kind = kinds[verdict.action]

        def decision(state: ImageState, verdict: Verdict = verdict, kind: str = kind) -> Change | None:
            standing = state.releases[verdict.version]
            if state.channels_of(verdict.version) or (standing.kept and kind != "unhide"):
                return None  # somebody was faster and wants it
            if standing.pruned or bool(standing.hidden_at) is (kind == "hide"):
                return None
            return Change(kind=kind, version=verdict.version, reason=verdict.reason)

        if channels.decide(layout, verdict.image, decision) is not None:
            changed.add(verdict.image)
            log.info(f"{verdict.image}:{verdict.version} {kind}", reason=verdict.reason)
    return changed


def _needed(states: dict[str, ImageState]) -> tuple[set[str], set[str]]:
    """(digests that a release still has, digests that only pruned releases had)."""
    alive: set[str] = set()
    pruned: set[str] = set()
    for state in states.values():
        for _, version, _, held in state.stems():
            (pruned if state.releases[version].pruned else alive).add(held.sha256)
    return alive, pruned - alive


def _unused(layout: Layout, alive: set[str], pruned: set[str], policy: Policy, now: datetime) -> list[str]:
    """Digests of bytes that may go: a pruned release's at once, those of no record when they are old."""
    oldest = now.timestamp() - policy.delete_after.total_seconds()
    found = []
    for entry in _entries(layout.blobs):
        match = _BLOB.fullmatch(entry.name)
        if match is None or match[1] in alive:
            continue
        if match[1] in pruned or entry.stat(follow_symlinks=False).st_ctime < oldest:
            found.append(match[1])
    return found


def _delete_unused(layout: Layout, policy: Policy, ask_jobs: AskJobs, report: Report, now: datetime) -> None:
    """Delete bytes that no release has; records, leases and jobs are read again before and after."""
    alive, pruned = _needed(_states(layout))
    try:
        used = retention.in_use(leases.read_all(layout), ask_jobs(), now)
    except ToolError as error:
        report.unreachable = error.message
        return
    aside: list[tuple[str, Path]] = []
    for digest in _unused(layout, alive, pruned, policy, now):
        if digest in used:
            log.info("kept bytes that no release has", sha256=digest, reason=used[digest])
            continue
        blob = layout.blob(digest)
        away = blob.with_name(temporary_name(f".{digest}.pruned"))
        try:
            blob.rename(away)
        except FileNotFoundError:
            continue  # another prune was faster
        aside.append((digest, away))
    if not aside:
        return
    alive, _ = _needed(_states(layout))
    for digest, away in aside:
        _settle(layout, digest, away, report, needed=digest in alive)
    atomic.sync_folder(layout.blobs)


def _settle(layout: Layout, digest: str, away: Path, report: Report, *, needed: bool) -> None:
    """Give bytes that were moved away their name back when a release has them, else delete them."""
    size = away.stat().st_size
    if needed and not exists(layout.blob(digest)):
        exclusive.place(away, layout.blob(digest))
    else:
        report.blobs.append(digest)
        report.freed += size
    away.unlink(missing_ok=True)


def _drop_leases(layout: Layout, jobs: LiveJobs, now: datetime) -> None:
    """Remove leases that no longer count, where we may."""
    for lease in leases.read_all(layout):
        if not retention.lease_counts(lease, jobs, now):
            try:
                (layout.leases / lease.name).unlink(missing_ok=True)
            except PermissionError:
                continue


def _clear_temporaries(layout: Layout, report: Report) -> None:
    """Remove temporary files whose writer is dead; bytes that a killed prune moved away are settled first."""
    alive: set[str] | None = None
    for path in temporaries(layout):
        if not is_orphan(path):
            continue
        match = _ASIDE.fullmatch(path.name)
        if match:
            alive = _needed(_states(layout))[0] if alive is None else alive
            _settle(layout, match[1], path, report, needed=match[1] in alive)
        else:
            size = path.lstat().st_size
            report.freed += size if path.suffix == LINK_SUFFIX and path.lstat().st_nlink == 1 else 0
            path.unlink(missing_ok=True)
        report.files.append((str(path.relative_to(layout.root)), "its writer is dead"))


def _foresee(
    layout: Layout,
    states: dict[str, ImageState],
    policy: Policy,
    report: Report,
    now: datetime,
    *,
    in_doubt: bool,
) -> None:
    """What a run would delete beside what the verdicts say."""
    for path in temporaries(layout):
        if is_orphan(path):
            report.files.append((str(path.relative_to(layout.root)), "its writer is dead"))
    if in_doubt:
        return
    for verdict in report.verdicts:
        if verdict.action == DELETE:
            states[verdict.image].releases[verdict.version].pruned = True
    alive, pruned = _needed(states)
    for digest in _unused(layout, alive, pruned, policy, now):
        report.blobs.append(digest)
        report.freed += layout.blob(digest).stat().st_size
        if digest not in pruned:
            report.files.append((str(layout.blob(digest).relative_to(layout.root)), "no record names it"))


def temporaries(layout: Layout) -> Iterator[Path]:
    """Every temporary file of the store, alive or dead."""
    folders = [layout.root, layout.blobs, layout.meta]
    for image in layout.images():
        meta = layout.image(image) / ".meta"
        folders += [layout.image(image), meta, layout.events(image)]
        folders += [Path(entry.path) for entry in _entries(meta) if entry.is_dir() and entry.name != "events"]
    for folder in folders:
        yield from [Path(entry.path) for entry in _entries(folder) if is_temporary(entry.name)]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def no_jobs() -> LiveJobs:
    """For a store that no Slurm cluster uses."""
    return LiveJobs()
