"""Remove what nobody needs: hide releases, delete them later, remove what killed processes left.

What is decided follows from records and events, all of them read for it; a cache can only keep bytes. While
one record or event cannot be read, no bytes are deleted in the whole store, and nothing is hidden in its
image.

Deleting bytes races with a publisher that brings the same content under a new version at the same moment. So
the bytes are first moved to a temporary name, then the records are read once more, and whatever is needed
after all gets its name back; the publisher looks after its commit too. Nothing that is in doubt is deleted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

from pipeline.errors import ToolError
from pipeline.store import caches, channels, inventory, leases, retention
from pipeline.store.events import Change
from pipeline.store.inventory import Inventory
from pipeline.store.layout import LINK_SUFFIX, Layout
from pipeline.store.reading import cache_bytes, index_is_current, read_head
from pipeline.store.retention import DELETE, HIDE, KEEP, UNHIDE, WAIT, LiveJobs, Policy, Verdict
from pipeline.store.sealed import UnreadableError
from pipeline.store.state import ImageState
from pipeline.system import atomic, exclusive
from pipeline.system.log import log
from pipeline.system.temporary import (
    FOREIGN_WRITER_AGE_SECONDS,
    is_foreign,
    is_orphan,
    is_temporary,
    temporary_name,
)

_BLOB = re.compile(r"([0-9a-f]{64})\.sqsh")
_ASIDE = re.compile(r"\.tmp\..*\.([0-9a-f]{64})\.pruned")

AskJobs = Callable[[], LiveJobs]


@dataclass(slots=True, kw_only=True)
class PruneReport:
    """What a prune found and did, or with dry_run would do. Sizes in bytes."""

    verdicts: list[Verdict] = field(default_factory=list)
    files: list[tuple[str, str]] = field(default_factory=list)
    """(path relative to the root, why it goes) of what belongs to no release, or to none any more."""
    kept: list[tuple[str, str]] = field(default_factory=list)
    """(path relative to the root, why it stays) of files that look as if they could go."""
    blobs: list[str] = field(default_factory=list)
    """sha256 of the bytes that went."""
    freed: int = 0
    unreachable: str = ""
    """Why Slurm could not be asked; then nothing is hidden or deleted."""
    broken: list[str] = field(default_factory=list)
    """Records and events that cannot be read, one sentence each. What they name is not known, so no bytes are
    deleted.
    """


def prune(layout: Layout, policy: Policy, ask_jobs: AskJobs, *, dry_run: bool = False) -> PruneReport:
    """Hide and delete what `policy` lets go. With `dry_run` nothing changes, and the report says what would.

    Slurm that cannot be asked (`ask_jobs` raises ToolError) means that no release is hidden or deleted.
    """
    report = PruneReport()
    now = datetime.now(timezone.utc)
    jobs: LiveJobs | None = None
    try:
        jobs = ask_jobs()
    except ToolError as error:
        report.unreachable = error.headline
    with atomic.translate_errors(f"pruning {layout.root}"):
        used = retention.in_use(leases.read_all(layout, warn=True), jobs, now)
        found = _read(layout, report)
        named = inventory.named_by_caches(layout, found)
        for state in found.states.values():
            report.verdicts += retention.judge(state, policy, used, now)
        report.verdicts = [_without_doubt(verdict, found, report) for verdict in report.verdicts]
        if dry_run:
            _foresee(layout, found, policy, report, now, used=None if jobs is None else named | used)
            return report
        _settle_killed(layout)
        for image in sorted(_change(layout, found.states, report) | _stale(layout, found)):
            caches.refresh(layout, image)
        if jobs is not None:
            _delete_unused(layout, policy, ask_jobs, report, now, named)
            _drop_leases(layout, jobs, now)
        _clear_temporaries(layout, report)
        caches.refresh_manifest(layout)
    return report


def _read(layout: Layout, report: PruneReport) -> Inventory:
    """What is true now of every image; what cannot be read is in the report, too."""
    found = inventory.take(layout)
    report.broken = found.broken
    return found


def _stale(layout: Layout, found: Inventory) -> set[str]:
    """Images that are known whole and whose caches are not right."""

    def right(image: str) -> bool:
        try:
            raw = cache_bytes(layout.index(image))
            return index_is_current(layout, image, raw) and read_head(layout, image) is not None
        except UnreadableError:
            return True  # of a newer schema: not ours to write

    known = found.states.keys() - found.faults.keys()
    return {image for image in known if found.states[image].releases and not right(image)}


def _without_doubt(verdict: Verdict, found: Inventory, report: PruneReport) -> Verdict:
    """The verdict, where it hides or deletes: only when everything is known that could speak against it."""
    if verdict.action not in (HIDE, DELETE):
        return verdict
    action, why = KEEP, ""
    if report.unreachable:
        why = f"running jobs are not known ({report.unreachable})"
    elif verdict.image in found.faults:
        why = "not everything of this image can be read"
    elif verdict.action == DELETE and report.broken:
        action, why = WAIT, "hidden; no bytes are deleted while a record or event cannot be read"
    return replace(verdict, action=action, reason=why) if why else verdict


def _change(layout: Layout, states: dict[str, ImageState], report: PruneReport) -> set[str]:
    """Write the events of the verdicts; returns the images that changed.

    Each verdict is decided again from the present state.
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

        state = states[verdict.image]
        if channels.decide(layout, verdict.image, decision, wanted=lambda _: (), state=state) is not None:
            changed.add(verdict.image)
            log.info(f"{verdict.image}:{verdict.version} {kind}", reason=verdict.reason)
    return changed


def _unused(
    layout: Layout,
    alive: set[str],
    pruned: set[str],
    policy: Policy,
    now: datetime,
    used: Mapping[str, str],
    report: PruneReport,
) -> list[str]:
    """Digests of bytes that may go: a pruned release's at once, those of no record when they are old.

    The report gets the reason of those that stay.
    """
    found = []
    for entry in _entries(layout.blobs):
        match = _BLOB.fullmatch(entry.name)
        if match is None or match[1] in alive or not entry.is_file(follow_symlinks=False):
            continue
        changed = datetime.fromtimestamp(entry.stat(follow_symlinks=False).st_ctime, timezone.utc)
        stays = ""
        if report.broken:
            stays = "there are records or events that cannot be read, and it may be theirs"
        elif match[1] in used:
            stays = f"no release has it, but {used[match[1]]}"
        elif match[1] not in pruned and changed + policy.delete_after >= now:
            stays = f"no record names it; deleted after {(changed + policy.delete_after).date()}"
        if stays:
            report.kept.append((_shown_path(layout, match[1]), stays))
        else:
            found.append(match[1])
    return found


def _used_now(layout: Layout, ask_jobs: AskJobs, now: datetime) -> dict[str, str]:
    return retention.in_use(leases.read_all(layout), ask_jobs(), now)


def _delete_unused(
    layout: Layout,
    policy: Policy,
    ask_jobs: AskJobs,
    report: PruneReport,
    now: datetime,
    named: Mapping[str, str],
) -> None:
    """Delete bytes that no release has; records, leases and jobs are read again before and after. `named` are
    digests that a cache named.
    """
    alive, pruned = _read(layout, report).needed()
    aside: dict[str, Path] = {}
    try:
        used = {**named, **_used_now(layout, ask_jobs, now)}
        for digest in _unused(layout, alive, pruned, policy, now, used, report):
            away = layout.blobs / temporary_name(f".{digest}.pruned")
            try:
                layout.blob(digest).rename(away)
            except FileNotFoundError:
                continue  # another prune was faster
            aside[digest] = away
        if aside:
            alive = _read(layout, report).needed()[0] | _used_now(layout, ask_jobs, now).keys()
            if report.broken:
                alive |= aside.keys()
            for digest in aside.keys() - alive:
                report.files.append((_shown_path(layout, digest), _why(digest, pruned)))
                _delete(aside.pop(digest), digest, report)
    except ToolError as error:
        report.unreachable = error.headline
    finally:
        for digest, away in aside.items():
            _give_back(layout, digest, away)
    atomic.sync_folder(layout.blobs)


def _shown_path(layout: Layout, digest: str) -> str:
    return str(layout.blob(digest).relative_to(layout.root))


def _why(digest: str, pruned: set[str]) -> str:
    return "no release has it any more" if digest in pruned else "no record names it"


def _delete(away: Path, digest: str, report: PruneReport) -> None:
    report.freed += away.stat().st_size
    report.blobs.append(digest)
    away.unlink(missing_ok=True)


def _give_back(layout: Layout, digest: str, away: Path) -> None:
    """Let bytes that were moved away have their name again."""
    exclusive.link_noreplace(away, layout.blob(digest))
    away.unlink(missing_ok=True)


def _settle_killed(layout: Layout) -> None:
    """Bytes that a killed prune moved away get their name back, and are judged like all others."""
    for entry in _entries(layout.blobs):
        match = _ASIDE.fullmatch(entry.name)
        if match and entry.is_file(follow_symlinks=False) and is_orphan(Path(entry.path)):
            _give_back(layout, match[1], Path(entry.path))


def _drop_leases(layout: Layout, jobs: LiveJobs, now: datetime) -> None:
    """Remove leases that no longer count, where we may, and what never was one."""
    counting = set()
    for lease in leases.read_all(layout):
        if retention.lease_counts(lease, jobs, now):
            counting.add(lease.name)
            continue
        try:
            (layout.leases / lease.name).unlink(missing_ok=True)
        except OSError:  # another user's, or one that its owner made immutable
            continue
    leases.remove_remains(layout, counting, now.timestamp())


def _clear_temporaries(layout: Layout, report: PruneReport) -> None:
    """Remove temporary files whose writer is dead."""
    for path, why in _leftovers(layout, report):
        status = path.lstat()
        report.freed += status.st_size if path.suffix == LINK_SUFFIX and status.st_nlink == 1 else 0
        path.unlink(missing_ok=True)
        report.files.append((str(path.relative_to(layout.root)), why))


def _leftovers(layout: Layout, report: PruneReport) -> Iterator[tuple[Path, str]]:
    """Temporary files to remove, with the reason; the report gets the reason of those that stay."""
    for path in temporaries(layout):
        if path.is_dir() and not path.is_symlink():
            report.kept.append((str(path.relative_to(layout.root)), "it is a folder, which no writer makes"))
        elif is_orphan(path):
            yield path, "its writer is dead"
        elif is_foreign(path):
            days = FOREIGN_WRITER_AGE_SECONDS // 86400
            stays = f"written from another machine or before a reboot; goes after {days} days without a write"
            report.kept.append((str(path.relative_to(layout.root)), stays))
        else:
            report.kept.append((str(path.relative_to(layout.root)), "its writer lives"))


def _foresee(
    layout: Layout,
    found: Inventory,
    policy: Policy,
    report: PruneReport,
    now: datetime,
    *,
    used: Mapping[str, str] | None,
) -> None:
    """What a run would delete in addition to what the verdicts say, and what it would leave, with reasons.

    `used` is None when the running jobs are not known.
    """
    report.files += [(str(path.relative_to(layout.root)), why) for path, why in _leftovers(layout, report)]
    if used is None:
        return
    going = [verdict for verdict in report.verdicts if verdict.action == DELETE]
    for verdict in going:
        found.states[verdict.image].releases[verdict.version].pruned = True
    alive, pruned = found.needed()
    for verdict in going:
        for digest in set(verdict.sha256) & alive:
            report.kept.append(
                (
                    _shown_path(layout, digest),
                    f"{verdict.image}:{verdict.version} goes, another release has it too",
                )
            )
    for digest in _unused(layout, alive, pruned, policy, now, used, report):
        report.blobs.append(digest)
        report.freed += layout.blob(digest).stat().st_size
        report.files.append((_shown_path(layout, digest), _why(digest, pruned)))


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
