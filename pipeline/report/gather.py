"""What the page says, taken from the store: releases with their records, history, leases, comparisons."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.errors import PublishError
from pipeline.progress import SILENT, Meter
from pipeline.report.compare import Comparison
from pipeline.report.comparing import Comparer
from pipeline.store import leases
from pipeline.store.events import Event, moment, read_events
from pipeline.store.leases import Lease
from pipeline.store.record import Release, mapping, rows
from pipeline.store.store import Listed, Store
from pipeline.text import shown


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedRelease:
    """One release with all that is told about it; `release` is None when its record cannot be read."""

    line: Listed
    release: Release | None
    created: datetime
    srun: str
    waivers: tuple[Mapping[str, str], ...]
    warnings: tuple[str, ...]
    comparison: Comparison | None
    in_use: int

    @property
    def anchor(self) -> str:
        """A name inside the page; the grammar of names leaves nothing to escape in it."""
        return f"{self.line.image}-{self.line.version}-{self.line.platform.replace('/', '-')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedImage:
    """One image: releases newest first, what channels name, events newest first, bytes on disk."""

    name: str
    releases: tuple[ReportedRelease, ...]
    channels: Mapping[str, str]
    events: tuple[Event, ...]
    bytes_on_disk: int
    older: int = 0
    """How many more releases there are than the page tells of."""
    broken: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything on the page. `growth` is (time, bytes of today's store that were there by then)."""

    root: Path
    made: datetime
    images: tuple[ReportedImage, ...]
    leases: tuple[Lease, ...]
    bytes_on_disk: int
    growth: tuple[tuple[datetime, int], ...]


def gather(
    store: Store,
    *,
    now: datetime,
    limit: int = 100,
    compared: int = 10,
    packages: bool = True,
    files: bool = False,
    meter: Meter = SILENT,
) -> Report:
    """Read the whole store for a page made at `now` (UTC).

    Of each image the newest `limit` releases are told, and the newest `compared` of them compared with the
    one before; `packages` reads their SBOMs or looks into their .sqsh for that, and `files` walks all of it.
    A damaged record or image is told on the page. Raises OSError when the store cannot be read at all.
    """
    held = tuple(one for one in leases.read_all(store.layout) if one.expires > now.timestamp())
    comparer = Comparer(store.layout, packages=packages, files=files)
    images = []
    for name in store.images():
        meter.line(f"reading {name}")
        images.append(_image(store, name, held, comparer, limit, compared))
    growth = _growth(store, [image.name for image in images if not image.broken])
    return Report(
        root=store.root,
        made=now,
        images=tuple(images),
        leases=held,
        bytes_on_disk=growth[-1][1] if growth else 0,
        growth=growth,
    )


def _image(
    store: Store, name: str, held: tuple[Lease, ...], comparer: Comparer, limit: int, compared: int
) -> ReportedImage:
    try:
        state = store.state(name)
        lines = store.listed(name)
        events = tuple(read_events(store.layout, name, 0))[::-1]
    except PublishError as error:
        return ReportedImage(
            name=name, releases=(), channels={}, events=(), bytes_on_disk=0, broken=error.headline
        )
    releases = [(line, _record(store, line)) for line in lines[: limit + 1]]
    told = [
        _release(line, release, _before(releases, number), held, comparer if number < compared else None)
        for number, (line, release) in enumerate(releases[:limit])
    ]
    on_disk = {line.sha256: line.size for line in lines if line.state != "pruned"}
    channels = {channel: names[-1] for channel, names in sorted(state.channels.items()) if names}
    return ReportedImage(
        name=name,
        releases=tuple(told),
        channels=channels,
        events=events,
        bytes_on_disk=sum(on_disk.values()),
        older=len(lines) - len(told),
    )


def _record(store: Store, line: Listed) -> Release | None:
    try:
        return store.release(line.image, line.version, line.platform)
    except PublishError:
        return None


def _before(releases: list[tuple[Listed, Release | None]], number: int) -> Release | None:
    """The next older release for the same platform."""
    platform = releases[number][0].platform
    older = (release for line, release in releases[number + 1 :] if line.platform == platform)
    return next(older, None)


def _release(
    line: Listed,
    release: Release | None,
    before: Release | None,
    held: tuple[Lease, ...],
    comparer: Comparer | None,
) -> ReportedRelease:
    scan = {} if release is None else mapping(release.scan)
    waivers = tuple(
        {key: shown(waiver.get(key, "")) for key in ("id", "package", "reason", "until")}
        for waiver in rows(scan.get("waived"))
    )
    warnings: Any = scan.get("warnings")
    return ReportedRelease(
        line=line,
        release=release,
        created=moment(line.created),
        srun="" if release is None or release.state != "published" else srun_line(release),
        waivers=waivers,
        warnings=tuple(shown(text) for text in warnings) if isinstance(warnings, list) else (),
        comparison=comparer(before, release) if comparer and before and release else None,
        in_use=sum(lease.sha256 == line.sha256 for lease in held),
    )


def srun_line(release: Release) -> str:
    """What to type to run a command in that release; the path never changes what it means."""
    return shlex.join(["srun", f"--container-image={release.link}", "python", "train.py"])


def _growth(store: Store, images: list[str]) -> tuple[tuple[datetime, int], ...]:
    came: dict[str, tuple[datetime, int]] = {}
    for line in (line for image in images for line in store.listed(image) if line.state != "pruned"):
        created = moment(line.created)
        came[line.sha256] = (min(came.get(line.sha256, (created, 0))[0], created), line.size)
    total, points = 0, []
    for created, amount in sorted(came.values()):
        total += amount
        points.append((created, total))
    return tuple(points)
