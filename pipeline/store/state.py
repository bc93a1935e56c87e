"""What is true of one image: its records with its events folded over them. Pure: no clock, no disk.

`index` writes a state as index.json and reads it back, so that the next one who wants it reads only what came
since.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.store.events import Event
from pipeline.store.names import DEFAULT_PLATFORM, stem
from pipeline.store.record import Record

HISTORY = 50
"""How many versions back a channel can be rolled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bytes:
    """One platform's file of a release; `file` is relative to the root, `source` an image digest or empty."""

    file: str
    sha256: str
    size: int
    source: str = ""
    external: bool = False

    def as_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"file": self.file, "sha256": self.sha256, "size": self.size}
        if self.source:
            data["source"] = self.source
        if self.external:
            data["external"] = True
        return data


@dataclass(slots=True, kw_only=True)
class Standing:
    """Where one version stands. Times are as the events wrote them; empty text is "no"."""

    created: str = ""
    platforms: dict[str, Bytes] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    """Platforms whose bytes were found damaged."""
    yanked: bool = False
    kept: bool = False
    hidden_at: str = ""
    pruned: bool = False
    named_until: str = ""
    """When the last channel that named it moved on."""
    reason: str = ""

    def state(self, platform: str | None = None) -> str:
        """The state of one platform's file, or of the version as a whole."""
        if self.pruned:
            return "pruned"
        whole = bool(self.damaged) and self.damaged >= self.platforms.keys()
        if whole if platform is None else platform in self.damaged:
            return "damaged"
        if self.hidden_at:
            return "hidden"
        return "yanked" if self.yanked else "published"

    def resolvable(self) -> bool:
        return self.state() == "published"


class Line(NamedTuple):
    """A published release with one file for the usual platform, as text of the index and what is in it; most
    are never made a Standing.
    """

    text: str
    created: str
    file: str
    sha256: str
    size: int
    kept: bool
    source: str
    external: bool
    named_until: str

    def standing(self) -> Standing:
        held = Bytes(
            file=self.file, sha256=self.sha256, size=self.size, source=self.source, external=self.external
        )
        return Standing(
            created=self.created,
            platforms={DEFAULT_PLATFORM: held},
            kept=self.kept,
            named_until=self.named_until,
        )


class File(NamedTuple):
    """One record's file; `file` is relative to the root."""

    stem: str
    version: str
    platform: str
    file: str
    sha256: str
    published: bool


class Releases(MutableMapping[str, Standing]):
    """version -> standing. What was read from an index stays text until somebody asks: ten thousand are
    common.
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: dict[str, Standing | Line] = {}

    def __getitem__(self, version: str) -> Standing:
        one = self._held[version]
        if isinstance(one, Line):
            one = self._held[version] = one.standing()
        return one

    def __setitem__(self, version: str, standing: Standing) -> None:
        self._held[version] = standing

    def __delitem__(self, version: str) -> None:
        del self._held[version]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, version: object) -> bool:
        return version in self._held

    def take(self, version: str, line: Line) -> None:
        """Hold a release as the text that it is in the index."""
        self._held[version] = line

    def unordered(self) -> ItemsView[str, Standing | Line]:
        """Every release as it is held."""
        return self._held.items()

    def raw(self) -> list[tuple[str, Standing | Line]]:
        """Every release as it is held, oldest first."""
        return sorted(self._held.items(), key=lambda item: (item[1].created, item[0]))


@dataclass(slots=True, kw_only=True)
class ImageState:
    """All of one image: versions in the order in which they were published, channels with their history."""

    image: str
    events: int = 0
    """Number of the last event that is folded in."""
    releases: Releases = field(default_factory=Releases)
    channels: dict[str, list[str]] = field(default_factory=dict)
    """What each channel named, the present version last."""

    def current(self, channel: str) -> str | None:
        names = self.channels.get(channel)
        return names[-1] if names else None

    def channels_of(self, version: str) -> list[str]:
        return [channel for channel, names in self.channels.items() if names and names[-1] == version]

    def add(self, record: Record) -> None:
        """Take a record in."""
        standing = self.releases.setdefault(record.version, Standing())
        standing.created = min(filter(None, (standing.created, record.created)))
        standing.platforms[record.platform] = Bytes(
            file=record.file,
            sha256=record.sha256,
            size=record.size,
            source=(record.source or {}).get("digest", ""),
            external=record.external,
        )

    def newest_first(self) -> list[tuple[str, Standing]]:
        return sorted(self.releases.items(), key=lambda item: (item[1].created, item[0]), reverse=True)

    def stems(self) -> Iterator[tuple[str, str, str, Bytes]]:
        """(stem of the record's file name, version, platform, bytes) of every record."""
        for version, standing in self.releases.items():
            for platform, held in standing.platforms.items():
                yield stem(version, platform), version, platform, held

    def files(self) -> Iterator[File]:
        """The file of every record, at a fraction of what `stems` costs."""
        for version, one in self.releases.unordered():
            if isinstance(one, Line):
                yield File(version, version, DEFAULT_PLATFORM, one.file, one.sha256, published=True)
                continue
            for platform, held in one.platforms.items():
                yield File(
                    stem(version, platform),
                    version,
                    platform,
                    held.file,
                    held.sha256,
                    published=one.state(platform) == "published",
                )

    def published_from(self, source: str, platform: str) -> Iterator[str]:
        """Versions that resolve and were made from the image with that digest, newest first."""
        for version, one in reversed(self.releases.raw()):
            if isinstance(one, Line) and source != one.source:
                continue
            standing = self.releases[version]
            held = standing.platforms.get(platform)
            if held is not None and held.source == source and standing.state(platform) == "published":
                yield version

    def apply(self, event: Event) -> None:
        """Fold the next event in."""
        change = event.change
        self.events = event.number
        standing = self.releases.setdefault(change.version, Standing())
        if change.kind == "promote":
            self._name(change.channel, change.version, event.at)
        elif change.kind == "rollback":
            self._roll_back(change.channel, change.version, event.at)
        else:
            self._mark(standing, event)

    def _name(self, channel: str, version: str, at: str) -> None:
        names = self.channels.setdefault(channel, [])
        if names and names[-1] == version:
            return
        if names:
            self._left(names[-1], at)
        names.append(version)
        del names[:-HISTORY]

    def _roll_back(self, channel: str, version: str, at: str) -> None:
        names = self.channels.get(channel, [])
        while names and names[-1] != version:
            self._left(names.pop(), at)
        if not names:
            self.channels[channel] = [version]

    def _left(self, version: str, at: str) -> None:
        standing = self.releases.get(version)
        if standing is not None:
            standing.named_until = max(standing.named_until, at)

    def _mark(self, standing: Standing, event: Event) -> None:
        change = event.change
        if change.kind in ("yank", "unyank"):
            standing.yanked = change.kind == "yank"
            standing.reason = change.reason
            if standing.yanked:
                self._forsake(change.version, event.at)
        elif change.kind in ("keep", "unkeep"):
            standing.kept = change.kind == "keep"
        elif change.kind == "hide":
            standing.hidden_at, standing.reason = event.at, change.reason
        elif change.kind == "unhide":
            standing.hidden_at = standing.reason = ""
        elif change.kind == "delete":
            standing.pruned = True
        elif change.kind == "restore":
            standing.pruned, standing.hidden_at, standing.reason = False, "", ""
        elif change.kind == "damaged":
            standing.damaged.add(change.platform)
        elif change.kind == "repaired":
            standing.damaged.discard(change.platform)

    def _forsake(self, version: str, at: str) -> None:
        """A yanked version leaves its channels; each goes back to what it named before and still resolves."""
        for names in self.channels.values():
            if not names or names[-1] != version:
                continue
            while names and not self.releases.setdefault(names[-1], Standing()).resolvable():
                self._left(names.pop(), at)


def parse_standing(entry: Mapping[str, Any]) -> Standing:
    """A release as the index has it. Raises KeyError, TypeError, AttributeError when it is damaged."""
    damaged = entry.get("damaged", {})
    files = {**entry["platforms"], **{platform: held for platform, held in damaged.items() if held}}
    return Standing(
        created=entry["created"],
        platforms={
            platform: Bytes(
                file=held["file"],
                sha256=held["sha256"],
                size=held["size"],
                source=held.get("source", ""),
                external=held.get("external", False),
            )
            for platform, held in files.items()
        },
        damaged=set(damaged),
        yanked=entry.get("yanked", False),
        kept=entry.get("kept", False),
        hidden_at=entry.get("hidden_at", ""),
        pruned=entry["state"] == "pruned",
        named_until=entry.get("named_until", ""),
        reason=entry.get("reason", ""),
    )
