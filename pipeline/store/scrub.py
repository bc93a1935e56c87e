"""Read the files of releases and compare size and sha256, at a limited rate, from where the last run stopped.

What is damaged is marked by an event, so that it no longer resolves; publishing the same content again
repairs it.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config.names import check_image, split_name, suggest
from pipeline.errors import ConfigError, PublishError, VerificationError
from pipeline.progress import NO_TASK, Task
from pipeline.store import caches, channels, folders, inventory, sealed, trust
from pipeline.store.events import Change
from pipeline.store.inventory import Inventory
from pipeline.store.layout import Layout
from pipeline.store.state import ImageState
from pipeline.system import atomic, untrusted
from pipeline.system.hashing import hashed

_PIECE = 4 << 20
_NOTE_SECONDS = 5.0
PROGRESS = "scrub.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A file with other bytes than were published, and all releases that have it."""

    sha256: str
    what: str
    releases: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class ScrubReport:
    """What was read. `skipped` files were read by an interrupted run before, or a short time ago."""

    checked: int = 0
    skipped: int = 0
    bytes_read: int = 0
    damaged: list[Damage] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """Records that cannot be read, one sentence each."""
    unsigned: list[str] = field(default_factory=list)
    """Releases without a required signature, one sentence each."""


def scrub(
    layout: Layout,
    *,
    names: Iterable[str] = (),
    bytes_per_second: float = 0.0,
    sleep: Callable[[float], None] = time.sleep,
    required: trust.Required | None = None,
    task: Task = NO_TASK,
) -> ScrubReport:
    """Read the files of all releases, or of `names` (image, image:version).

    `bytes_per_second` limits the rate; 0: no limit. An interrupted run over all releases is resumed; after a
    complete one, the next begins again. In a store that cannot be written, nothing is marked. The required
    signatures of every wanted release are verified. Raises ConfigError for an unknown name.
    """
    report = ScrubReport()
    wanted = [split_name(name) if ":" in name else (check_image(name), "") for name in names]
    with atomic.translate_errors(f"reading {layout.root}"):
        found = inventory.take(layout)
        held = _held(layout, found, wanted, report)
        report.unsigned = _unsigned(layout, held, required)
    progress = _read_progress(layout)
    todo = list(held)
    if not wanted:
        progress.started = progress.started or time.time()
        todo = [digest for digest in held if progress.sound.get(digest, 0.0) < progress.started]
    report.skipped = len(held) - len(todo)
    task.total(sum(max(held[digest].sizes) for digest in todo))
    pace = _Pace(bytes_per_second, sleep)
    noted = time.monotonic()
    try:
        for digest in sorted(todo, key=lambda one: (progress.sound.get(one, 0.0), one)):
            with atomic.translate_errors(f"reading {layout.blob(digest)}"):
                size, what = _look(layout, digest, held[digest].sizes.keys(), pace, report, task)
            report.checked += 1
            progress.sound.pop(digest, None)
            if not what:
                progress.sound[digest] = time.time()
            for recorded, places in held[digest].sizes.items():  # a wrong record says nothing of the others
                wrong = what or ("" if recorded == size else f"{size} bytes instead of {recorded}")
                if wrong:
                    releases = tuple(f"{image}:{version}" for image, version, _ in places)
                    report.damaged.append(Damage(sha256=digest, what=wrong, releases=releases))
                _mark(layout, found.states, digest, places, wrong)
            if time.monotonic() - noted > _NOTE_SECONDS:  # thousands of small files: not after each
                _write_progress(layout, progress)
                noted = time.monotonic()
        if not wanted:
            progress.started = 0.0
            progress.sound = {digest: when for digest, when in progress.sound.items() if digest in held}
    finally:
        if todo:
            _write_progress(layout, progress)
    return report


@dataclass(slots=True)
class _Held:
    """What has some bytes: by the size that the record gives, (image, version, platform) of each."""

    sizes: dict[int, list[tuple[str, str, str]]] = field(default_factory=dict)


def _held(
    layout: Layout, found: Inventory, wanted: list[tuple[str, str]], report: ScrubReport
) -> dict[str, _Held]:
    """sha256 -> what has it, for everything that was not pruned. What cannot be read is in the report."""
    held: dict[str, _Held] = {}
    there: set[tuple[str, str]] = {(image, "") for image in found.faults}
    images = {image for image, _ in wanted} or found.faults.keys()
    report.broken = [fault for image in sorted(images) for fault in found.faults.get(image, [])]
    for image, state in found.states.items():
        for _, version, platform, one in state.stems():
            there |= {(image, version), (image, "")}
            if state.releases[version].pruned:
                continue
            if wanted and not {(image, version), (image, "")} & set(wanted):
                continue
            if one.size == 0 and platform in state.releases[version].damaged:
                continue  # the tombstone of one platform: it has no bytes
            sizes = held.setdefault(one.sha256, _Held()).sizes
            sizes.setdefault(one.size, []).append((image, version, platform))
    for image, version in wanted:
        if (image, version) not in there and image not in found.faults:
            names = [":".join(filter(None, one)) for one in there]
            name = ":".join(filter(None, (image, version)))
            raise ConfigError(f"there is no release {name} in {layout.root}", hint=suggest(name, names))
    return held


def _unsigned(layout: Layout, held: dict[str, _Held], required: trust.Required | None) -> list[str]:
    """A sentence for each release that lacks a signature that a policy requires."""
    if not trust.all_of(required):
        return []
    sentences = []

    def look(image: str, version: str, platform: str) -> None:
        try:
            trust.demand_of(layout, image, version, platform, required)
        except (PublishError, VerificationError) as error:
            sentences.append(error.headline)

    for place in sorted({place for one in held.values() for each in one.sizes.values() for place in each}):
        look(*place)
    return sentences


class _Pace:
    """Sleeps as much as keeps the mean rate below the limit."""

    def __init__(self, bytes_per_second: float, sleep: Callable[[float], None]) -> None:
        self._rate = bytes_per_second
        self._sleep = sleep
        self._started = time.monotonic()
        self._bytes = 0

    def passed(self, count: int) -> None:
        self._bytes += count
        if self._rate:
            ahead = self._bytes / self._rate - (time.monotonic() - self._started)
            if ahead > 0:
                self._sleep(ahead)


def _look(
    layout: Layout, digest: str, sizes: Collection[int], pace: _Pace, report: ScrubReport, task: Task
) -> tuple[int, str]:
    """(size of the file, what is wrong with the bytes or nothing). A size in no record is wrong unread."""
    there = 0
    try:
        with os.fdopen(untrusted.open_regular(layout.blob(digest)), "rb", buffering=0) as file:
            there = os.fstat(file.fileno()).st_size
            if there not in sizes:
                return there, f"{there} bytes instead of {' or '.join(map(str, sorted(sizes)))}"
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)

            def count(piece: bytes) -> None:
                report.bytes_read += len(piece)
                task.advance(len(piece))
                pace.passed(len(piece))

            found = hashed(file, count).hexdigest()
    except FileNotFoundError:
        return there, "the file is missing"
    except untrusted.NotRegularError:
        return there, "it is not a regular file"
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            return there, "it is not a regular file"
        if error.errno != errno.EIO:
            raise  # no right to read, a stale handle: that says nothing about the bytes
        return there, "the disk cannot read it"
    return there, "" if found == digest else f"its sha256 is {found}"


def _mark(
    layout: Layout,
    states: dict[str, ImageState],
    digest: str,
    places: list[tuple[str, str, str]],
    what: str,
) -> None:
    """Mark what is damaged, and what was and is sound again. Later events are folded into `states` first."""
    if not os.access(layout.root, os.W_OK):
        return
    for image, version, platform in places:

        def decision(state: ImageState, version: str = version, platform: str = platform) -> Change | None:
            standing = state.releases[version]
            if bool(what) is (platform in standing.damaged) or standing.pruned:
                return None
            kind = "damaged" if what else "repaired"
            return Change(kind=kind, version=version, platform=platform, sha256=digest, reason=what)

        if channels.decide(layout, image, decision, wanted=lambda _: (), state=states[image]) is not None:
            caches.refresh(layout, image)
            caches.refresh_manifest(layout)


def last_finding(layout: Layout) -> float | None:
    """When a scrub last found a file sound, in seconds since 1970; None when none ever did."""
    return max(_read_progress(layout).sound.values(), default=None)


def _progress_path(layout: Layout) -> Path:
    return layout.meta / PROGRESS


@dataclass(slots=True)
class _Progress:
    """`started` is when the run over everything began that has not ended yet, else 0; seconds since 1970."""

    started: float = 0.0
    sound: dict[str, float] = field(default_factory=dict)
    """sha256 -> when it was last found sound"""


def _read_progress(layout: Layout) -> _Progress:
    try:
        data: Any = json.loads(sealed.read_bytes(_progress_path(layout)))
        sound = {str(digest): float(when) for digest, when in data["sound"].items()}
        return _Progress(float(data["started"]), sound)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, sealed.UnreadableError):
        return _Progress()


def _write_progress(layout: Layout, progress: _Progress) -> None:
    if not os.access(layout.root, os.W_OK):
        return
    with atomic.translate_errors("noting how far the scrub got"):
        folders.make(layout.meta)
        data = {"schema": 1, "started": progress.started, "sound": dict(sorted(progress.sound.items()))}
        atomic.replace(_progress_path(layout), json.dumps(data).encode() + b"\n")
