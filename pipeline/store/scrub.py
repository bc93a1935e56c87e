"""Read the files of releases and compare size and sha256, at a limited rate, from where the last run stopped.

What is damaged is marked by an event, so that it no longer resolves; publishing the same content again
repairs it. With a `Deep` comparison every byte is expanded as well: a file can have the bytes that were
published and still not be what its image says. The same bytes do not repair that.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from pipeline.config.names import check_image, split_name, suggest
from pipeline.errors import ConfigError, PublishError, SqshpipeError, VerificationError
from pipeline.progress import NO_TASK, Task
from pipeline.store import caches, channels, folders, inventory, sealed, trust
from pipeline.store.events import CONTENT, Change, wrong_content
from pipeline.store.inventory import Inventory
from pipeline.store.layout import LAYERS, Layout
from pipeline.store.reading import read_record
from pipeline.store.record import Record
from pipeline.store.state import ImageState
from pipeline.system import atomic, untrusted
from pipeline.system.hashing import hashed

_PIECE = 4 << 20
_NOTE_SECONDS = 5.0
PROGRESS = "scrub.json"
_DEEP = ("full", "image")
_Place = tuple[str, str, str]  # image, version, platform


@dataclass(frozen=True, slots=True, kw_only=True)
class Deep:
    """A comparison of content; `name` is "full" or "image", under which is noted how far a run got.

    `compare` gives why a release cannot be compared, else nothing; it raises VerificationError for one with
    wrong content.
    """

    name: str
    compare: Callable[[Record, Task], str]


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
    compared: int = 0
    """Releases of which the content was compared; of those in the next two only the sha256."""
    by_sha256_only: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    """Releases whose image could not be read, one sentence each."""


def scrub(
    layout: Layout,
    *,
    names: Iterable[str] = (),
    bytes_per_second: float = 0.0,
    sleep: Callable[[float], None] = time.sleep,
    required: trust.Required | None = None,
    deep: Deep | None = None,
    task: Task = NO_TASK,
) -> ScrubReport:
    """Read the files of all releases, or of `names` (image, image:version).

    `bytes_per_second` limits the rate; 0: no limit. With `deep`, the content of sound files is compared too,
    at the same rate of plain bytes. An interrupted run over all releases is resumed; after a
    complete one, the next begins again. In a store that cannot be written, nothing is marked. The required
    signatures of every wanted release are verified. Raises ConfigError for an unknown name.
    """
    report = ScrubReport()
    wanted = [split_name(name) if ":" in name else (check_image(name), "") for name in names]
    with atomic.translate_errors(f"reading {layout.root}"):
        found = inventory.take(layout)
        held = _held(layout, found, wanted, report)
        report.unsigned = _unsigned(layout, held, required)
    noted_in = PROGRESS if deep is None else _deep_progress(deep.name)
    progress = _read_progress(layout, noted_in)
    todo = list(held)
    if not wanted:
        progress.started = progress.started or time.time()
        todo = [digest for digest in held if progress.sound.get(digest, 0.0) < progress.started]
    report.skipped = len(held) - len(todo)
    task.total(sum(max(held[digest].sizes) for digest in todo))
    pace = _Pace(bytes_per_second, sleep)
    contents = _Contents(layout, found.states, deep, report, _PacedTask(task, pace))
    noted = time.monotonic()
    try:
        for digest in sorted(todo, key=lambda one: (progress.sound.get(one, 0.0), one)):
            with atomic.translate_errors(f"reading {layout.blob(digest)}"):
                size, what = _look(layout, digest, held[digest].sizes.keys(), pace, report, task)
            report.checked += 1
            progress.sound.pop(digest, None)
            for recorded, places in held[digest].sizes.items():  # a wrong record says nothing of the others
                wrong = what or ("" if recorded == size else f"{size} bytes instead of {recorded}")
                for finding, those in contents.judged(places, wrong):
                    if finding.reason:
                        releases = tuple(f"{image}:{version}" for image, version, _ in those)
                        report.damaged.append(Damage(sha256=digest, what=finding.reason, releases=releases))
                    _mark(layout, found.states, digest, those, finding)
            if not what:
                progress.sound[digest] = time.time()
            if time.monotonic() - noted > _NOTE_SECONDS:  # thousands of small files: not after each
                _write_progress(layout, noted_in, progress)
                noted = time.monotonic()
        if not wanted:
            progress.started = 0.0
            progress.sound = {digest: when for digest, when in progress.sound.items() if digest in held}
    finally:
        if todo:
            _write_progress(layout, noted_in, progress)
    return report


@dataclass(slots=True)
class _Held:
    """What has some bytes: by the size that the record gives, (image, version, platform) of each."""

    sizes: dict[int, list[_Place]] = field(default_factory=dict)


@dataclass(slots=True)
class _Contents:
    """What is in the files of releases."""

    layout: Layout
    states: dict[str, ImageState]
    deep: Deep | None
    report: ScrubReport
    task: Task
    _known: dict[tuple[str, ...], str] = field(default_factory=dict)

    def judged(self, places: list[_Place], wrong: str) -> list[tuple[_Finding, list[_Place]]]:
        """What is wrong, of which places; `wrong` is what was found wrong with the bytes."""
        if wrong:
            return [(_Finding(wrong), places)]
        found: dict[str, list[_Place]] = {}
        with atomic.translate_errors(f"reading {self.layout.root}"):
            for place in places:
                found.setdefault(self._content(*place), []).append(place)
        return [(_Finding(reason, CONTENT if reason else ""), those) for reason, those in found.items()]

    def _content(self, image: str, version: str, platform: str) -> str:
        record = None if self.deep is None else read_record(self.layout, image, version, platform)
        name = f"{image}:{version}"
        try:
            why_not = "" if self.deep is None or record is None else self._compared(self.deep, record)
        except VerificationError as error:
            return "its content is wrong: " + ("; ".join(map(str.strip, error.details)) or error.message)
        except SqshpipeError as error:
            self.report.failed.append(f"{name}: {error.headline}")
        else:
            if record is not None and not why_not:
                self.report.compared += 1
                return ""
            self.report.by_sha256_only += [f"{name}: {why_not}"] if why_not else []
        marked = platform in self.states[image].releases[version].damaged
        return wrong_content(self.layout, image, version, platform) if marked else ""

    def _compared(self, deep: Deep, record: Record) -> str:
        """Why it cannot be compared, else nothing; several releases with one file are compared once."""
        source, layers = (record.source or {}).get("digest", ""), record.attachments.get(LAYERS, "")
        key = (record.sha256, source, layers)
        if key not in self._known:
            self._known[key] = deep.compare(record, self.task)
        return self._known[key]


@dataclass(frozen=True, slots=True)
class _Finding:
    """What is wrong with a file, or nothing; `check` as in the event."""

    reason: str
    check: str = ""


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


@dataclass(frozen=True, slots=True)
class _PacedTask:
    """Passes progress on, at the limited rate."""

    task: Task
    pace: _Pace

    def total(self, amount: int) -> None:
        self.task.total(amount)

    def advance(self, amount: int) -> None:
        self.task.advance(amount)
        self.pace.passed(amount)

    def line(self, text: str) -> None:
        self.task.line(text)


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
    places: list[_Place],
    found: _Finding,
) -> None:
    """Mark what is damaged, and what was and is sound again. Later events are folded into `states` first."""
    if not os.access(layout.root, os.W_OK):
        return
    for image, version, platform in places:

        def decision(state: ImageState, version: str = version, platform: str = platform) -> Change | None:
            standing = state.releases[version]
            if bool(found.reason) is (platform in standing.damaged) or standing.pruned:
                return None
            return Change(
                kind="damaged" if found.reason else "repaired",
                version=version,
                platform=platform,
                sha256=digest,
                reason=found.reason,
                check=found.check,
            )

        if channels.decide(layout, image, decision, wanted=lambda _: (), state=states[image]) is not None:
            caches.refresh(layout, image)
            caches.refresh_manifest(layout)


def last_finding(layout: Layout) -> float | None:
    """When a scrub last found a file sound, in seconds since 1970; None when none ever did."""
    names = (PROGRESS, *map(_deep_progress, _DEEP))
    return max((when for name in names for when in _read_progress(layout, name).sound.values()), default=None)


def _deep_progress(name: str) -> str:
    return f"scrub-{name}.json"


@dataclass(slots=True)
class _Progress:
    """`started` is when the run over everything began that has not ended yet, else 0; seconds since 1970."""

    started: float = 0.0
    sound: dict[str, float] = field(default_factory=dict)
    """sha256 -> when it was last found sound"""


def _read_progress(layout: Layout, name: str) -> _Progress:
    try:
        data: Any = json.loads(sealed.read_bytes(layout.meta / name))
        sound = {str(digest): float(when) for digest, when in data["sound"].items()}
        return _Progress(float(data["started"]), sound)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, sealed.UnreadableError):
        return _Progress()


def _write_progress(layout: Layout, name: str, progress: _Progress) -> None:
    if not os.access(layout.root, os.W_OK):
        return
    with atomic.translate_errors("noting how far the scrub got"):
        folders.make(layout.meta)
        data = {"schema": 1, "started": progress.started, "sound": dict(sorted(progress.sound.items()))}
        atomic.replace(layout.meta / name, json.dumps(data).encode() + b"\n")
