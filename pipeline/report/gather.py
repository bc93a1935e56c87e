"""What the page shows, read from the store: releases with their records, history, leases, comparisons."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.config.names import DEFAULT_PLATFORM
from pipeline.errors import PublishError
from pipeline.progress import NO_TASK, Task
from pipeline.report.compare import Comparer, Comparison
from pipeline.store import leases
from pipeline.store.events import Event, moment, read_events
from pipeline.store.leases import Lease
from pipeline.store.record import DATA, Release, mapping, rows
from pipeline.store.store import ReleaseRow, Store
from pipeline.text import shown

_SEVERITIES = ("critical", "high", "medium", "low")
_MOST_ROWS = 3000  # releases on the page, of all images
_MOST_WAIVERS = 50
_CHIP = 24  # characters of a status that this program did not write


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """A short label of a row; `kind` is one of our CSS classes."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedRelease:
    """One release with all that the page shows; `release` is None when its record cannot be read."""

    line: ReleaseRow
    release: Release | None
    created: datetime
    waivers: tuple[Mapping[str, str], ...]
    warnings: tuple[str, ...]
    comparison: Comparison | None
    in_use: int

    @property
    def anchor(self) -> str:
        """Its id in the page; the grammar of names leaves nothing to escape in it."""
        platform = self.line.platform
        end = "" if platform == DEFAULT_PLATFORM else f":{platform.replace('/', '-')}"
        return f"{self.line.image}:{self.line.version}{end}"

    @property
    def name(self) -> str:
        return f"{self.line.image}:{self.line.version}"

    @property
    def srun(self) -> str:
        """The srun line that starts a job in this image by its name; empty when none can start."""
        starts = self.release is not None and self.line.state == "published" and not self.data
        return _srun(self.name) if starts else ""

    @property
    def data(self) -> bool:
        """Whether it is a data release: mounted, never started, never scanned."""
        return self.release is not None and self.release.kind == DATA

    @property
    def srun_path(self) -> str:
        """The srun line with the file's path, for clusters whose pyxis cannot find an image by name."""
        return _srun(str(self.release.link)) if self.release is not None and self.srun else ""

    @property
    def by(self) -> str:
        """Who published it; empty where the record does not say so."""
        by = self.release.provenance.get("by") if self.release else None
        return shown(by, longest=60) if isinstance(by, str) else ""

    @property
    def revision(self) -> str:
        """The commit of the sources, 10 characters; empty where the record does not say so."""
        revision = self.release.provenance.get("revision") if self.release else None
        return shown(revision[:10]) if isinstance(revision, str) else ""

    @property
    def scan_status(self) -> str:
        """The status of the scan: passed, unscanned, external, or what the record says; empty without one."""
        return shown(self.release.scan.get("status", "unknown"), longest=_CHIP) if self.release else ""

    @property
    def unscanned(self) -> str:
        """The word external or unscanned for an image that no scanner has passed; else empty."""
        return self.scan_status if self.scan_status in ("external", "unscanned") and not self.data else ""

    def chips(self) -> Iterable[Chip]:
        """Labels of its row: everything that makes it unlike an ordinary release."""
        line, status = self.line, self.scan_status
        if line.state != "published":
            yield Chip(kind=line.state, text=line.state)
        if line.kept:
            yield Chip(kind="plain", text="kept")
        if line.platform != DEFAULT_PLATFORM:
            yield Chip(kind="plain", text=line.platform)
        if self.in_use:
            yield Chip(kind="plain", text=f"in use by {self.in_use}")
        if self.data:
            yield Chip(kind="plain", text="data")
        elif status not in ("", "passed"):
            yield Chip(kind="unscanned", text=status)
        if found := self._worst():
            yield Chip(kind=found[0], text=f"{found[1]} {found[0]}")
        if self.waivers:
            yield Chip(kind="plain", text=f"{len(self.waivers)} waived")

    def _worst(self) -> tuple[str, int] | None:
        """The worst severity that the scan found, and how many findings have it."""
        counts = mapping(self.release.scan.get("findings")) if self.release else {}
        for severity in _SEVERITIES:
            number = counts.get(severity)
            if isinstance(number, int) and not isinstance(number, bool) and 0 < number < 1_000_000:
                return severity, number
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedImage:
    """One image: releases newest first, what each channel names, events newest first.

    `own` are the bytes on disk that no other image has, `shared` those that others have too.
    """

    name: str
    releases: tuple[ReportedRelease, ...] = ()
    channels: Mapping[str, str]
    events: tuple[Event, ...] = ()
    own: int = 0
    shared: int = 0
    older: int = 0
    """How many more releases there are than the page lists."""
    broken: str = ""

    @property
    def newest(self) -> ReportedRelease | None:
        """The newest release that resolves; a yanked, hidden, pruned or damaged one is not."""
        return next((one for one in self.releases if one.line.state == "published"), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything on the page. `shared` are bytes that several images have, counted once: with the `own` of
    all images they add up to `bytes_on_disk`. `growth` is (time, bytes of today's store that were there).
    """

    root: Path
    made: datetime
    images: tuple[ReportedImage, ...]
    leases: tuple[Lease, ...]
    bytes_on_disk: int
    shared: int
    growth: tuple[tuple[datetime, int], ...]
    compared: bool
    """Whether packages were read."""


def gather(
    store: Store,
    *,
    now: datetime,
    most: int = _MOST_ROWS,
    compared: int = 10,
    packages: bool = True,
    files: bool = False,
    task: Task = NO_TASK,
) -> Report:
    """Read the whole store for a page made at `now` (UTC).

    The page lists `most` releases at most, the newest of each image. Each is compared with the one before
    by its record, the newest `compared` of an image also by their packages: `packages` reads their SBOMs or
    their .sqsh, `files` walks the .sqsh. A damaged record or image is reported on the page. Raises OSError
    when the store cannot be read at all.
    """
    held = tuple(one for one in leases.read_all(store.layout) if one.expires > now.timestamp())
    in_use: dict[str, int] = {}
    for lease in held:
        in_use[lease.sha256] = in_use.get(lease.sha256, 0) + 1
    lines = {name: _lines(store, name) for name in store.images()}
    readable = [found for found in lines.values() if not isinstance(found, str)]
    owners = _owners(readable)
    limit = _limit([len(found) for found in readable], most)
    contents = Comparer(store.layout, packages=packages, files=files)
    records = Comparer(store.layout, packages=False, files=False)
    images = []
    for name, found in lines.items():
        task.line(f"reading {name}")
        if isinstance(found, str):
            images.append(ReportedImage(name=name, channels={}, broken=found))
            continue
        comparers = [contents] * min(compared, limit) + [records] * max(0, limit - compared)
        images.append(_image(store, name, found, in_use, owners, comparers))
    growth = _growth(readable)
    return Report(
        root=store.root,
        made=now,
        images=tuple(images),
        leases=held,
        bytes_on_disk=growth[-1][1] if growth else 0,
        shared=sum(size for size, names in owners.values() if len(names) > 1),
        growth=growth,
        compared=packages,
    )


def _lines(store: Store, name: str) -> list[ReleaseRow] | str:
    """The releases of an image; what is wrong with it, as a sentence, when it cannot be read."""
    try:
        return store.listed(name)
    except PublishError as error:
        return error.headline


def _owners(lists: Iterable[Sequence[ReleaseRow]]) -> dict[str, tuple[int, set[str]]]:
    """(bytes, images that have the file) by digest, of all that is on disk."""
    owners: dict[str, tuple[int, set[str]]] = {}
    for line in (line for lines in lists for line in lines if line.state != "pruned"):
        owners.setdefault(line.sha256, (line.size, set()))[1].add(line.image)
    return owners


def _limit(counts: Sequence[int], most: int) -> int:
    """How many releases of each image can be listed, so that all together are `most` at most; at least 1."""
    limit = max(counts, default=1)
    while limit > 1 and sum(min(count, limit) for count in counts) > most:
        limit = limit * 9 // 10
    return limit


def _image(
    store: Store,
    name: str,
    lines: Sequence[ReleaseRow],
    in_use: Mapping[str, int],
    owners: Mapping[str, tuple[int, set[str]]],
    comparers: Sequence[Comparer],
) -> ReportedImage:
    try:
        state = store.state(name)
        events = tuple(read_events(store.layout, name, 0))[::-1]
    except PublishError as error:
        return ReportedImage(name=name, channels={}, broken=error.headline)
    releases = [(line, _record(store, line)) for line in lines[: len(comparers) + 1]]
    reported = [
        _release(line, release, _before(releases, number), in_use.get(line.sha256, 0), comparer)
        for number, ((line, release), comparer) in enumerate(zip(releases, comparers, strict=False))
    ]
    found = [owners[digest] for digest in {line.sha256 for line in lines if line.state != "pruned"}]
    return ReportedImage(
        name=name,
        releases=tuple(reported),
        channels={channel: names[-1] for channel, names in sorted(state.channels.items()) if names},
        events=events,
        own=sum(size for size, names in found if len(names) == 1),
        shared=sum(size for size, names in found if len(names) > 1),
        older=len(lines) - len(reported),
    )


def _record(store: Store, line: ReleaseRow) -> Release | None:
    try:
        return store.release(line.image, line.version, line.platform)
    except PublishError:
        return None


def _before(releases: list[tuple[ReleaseRow, Release | None]], number: int) -> Release | None:
    """The next older release for the same platform."""
    platform = releases[number][0].platform
    older = (release for line, release in releases[number + 1 :] if line.platform == platform)
    return next(older, None)


def _release(
    line: ReleaseRow, release: Release | None, before: Release | None, in_use: int, comparer: Comparer
) -> ReportedRelease:
    scan = {} if release is None else mapping(release.scan)
    waivers = tuple(
        {key: shown(waiver.get(key, "")) for key in ("id", "package", "reason", "until")}
        for waiver in rows(scan.get("waived"))[:_MOST_WAIVERS]
    )
    warnings: Any = scan.get("warnings")
    return ReportedRelease(
        line=line,
        release=release,
        created=moment(line.created),
        waivers=waivers,
        warnings=tuple(shown(text) for text in warnings[:_MOST_WAIVERS])
        if isinstance(warnings, list)
        else (),
        comparison=comparer(before, release) if before and release else None,
        in_use=in_use,
    )


def _srun(image: str) -> str:
    return shlex.join(["srun", f"--container-image={image}", "python", "train.py"])


def _growth(lists: Iterable[Sequence[ReleaseRow]]) -> tuple[tuple[datetime, int], ...]:
    came: dict[str, tuple[datetime, int]] = {}
    for line in (line for lines in lists for line in lines if line.state != "pruned"):
        created = moment(line.created)
        came[line.sha256] = (min(came.get(line.sha256, (created, 0))[0], created), line.size)
    total, points = 0, []
    for created, amount in sorted(came.values()):
        total += amount
        points.append((created, total))
    return tuple(points)
