"""What is true of one image: its records with its events folded over them. Pure: no clock, no disk.

`index` writes a state as index.json and reads it back, so that the next reader reads only later
events.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.config.names import is_channel, is_platform, is_version, stem
from pipeline.store.events import Event
from pipeline.store.record import IMAGE, Record, is_sha256

HISTORY = 50
"""How many versions back a channel can be rolled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One platform's file of a release; `source` is an image digest or empty."""

    sha256: str
    size: int
    source: str = ""
    external: bool = False
    kind: str = IMAGE

    @property
    def file(self) -> str:
        """Where the bytes lie, relative to the root."""
        return f"blobs/sha256/{self.sha256}.sqsh"

    def as_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"file": self.file, "sha256": self.sha256, "size": self.size}
        if self.source:
            data["source"] = self.source
        if self.external:
            data["external"] = True
        if self.kind != IMAGE:
            data["kind"] = self.kind
        return data


@dataclass(slots=True, kw_only=True)
class VersionState:
    """The state of one version. Times are as in the events; an empty text means that it never happened."""

    created: str = ""
    platforms: dict[str, StoredFile] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    """Platforms whose bytes were found damaged."""
    yanked: bool = False
    kept: bool = False
    hidden_at: str = ""
    pruned: bool = False
    named_until: str = ""
    """When the last channel that named it began to name another version."""
    reason: str = ""
    attached: dict[str, Mapping[str, str]] = field(default_factory=dict)
    """By platform: sha256 by name, of what events say was attached later."""

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

    def unmarked(self) -> bool:
        """Whether no event prunes, hides, yanks or damages it.

        Unlike `resolvable`, this depends on events only, not on which records were read.
        """
        return not (self.pruned or self.hidden_at or self.yanked or self.damaged)


class File(NamedTuple):
    """One record's file; `file` is relative to the root."""

    stem: str
    version: str
    platform: str
    file: str
    sha256: str
    published: bool


@dataclass(slots=True, kw_only=True)
class ImageState:
    """All of one image: versions in the order in which they were published, channels with their history."""

    image: str
    events: int = 0
    """Number of the last event that is folded in."""
    newest_event: str = ""
    """Checksum of that event's file; empty when it is missing."""
    releases: dict[str, VersionState] = field(default_factory=dict)
    channels: dict[str, list[str]] = field(default_factory=dict)
    """What each channel named, the present version last."""

    def current(self, channel: str) -> str | None:
        names = self.channels.get(channel)
        return names[-1] if names else None

    def channels_of(self, version: str) -> list[str]:
        return [channel for channel, names in self.channels.items() if names and names[-1] == version]

    def add(self, record: Record) -> None:
        """Add a record."""
        standing = self.releases.setdefault(record.version, VersionState())
        standing.created = min(filter(None, (standing.created, record.created)))
        standing.platforms[record.platform] = StoredFile(
            sha256=record.sha256,
            size=record.size,
            source=(record.source or {}).get("digest", ""),
            external=record.external,
            kind=record.kind,
        )

    def newest_first(self) -> list[tuple[str, VersionState]]:
        return sorted(self.releases.items(), key=lambda item: (item[1].created, item[0]), reverse=True)

    def stems(self) -> Iterator[tuple[str, str, str, StoredFile]]:
        """(stem of the record's file name, version, platform, bytes) of every record."""
        for version, standing in self.releases.items():
            for platform, held in standing.platforms.items():
                yield stem(version, platform), version, platform, held

    def files(self) -> Iterator[File]:
        """The file of every record."""
        for name, version, platform, held in self.stems():
            published = self.releases[version].state(platform) == "published"
            yield File(name, version, platform, held.file, held.sha256, published)

    def published_from(self, source: str, platform: str) -> Iterator[str]:
        """Versions that resolve and were made from the image with that digest, newest first."""
        for version, standing in self.newest_first():
            held = standing.platforms.get(platform)
            if held is not None and held.source == source and standing.state(platform) == "published":
                yield version

    def apply(self, event: Event) -> None:
        """Apply the next event."""
        change = event.change
        self.events, self.newest_event = event.number, event.checksum
        standing = self.releases.setdefault(change.version, VersionState())
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

    def _mark(self, standing: VersionState, event: Event) -> None:
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
            if change.attachments:
                before = standing.attached.get(change.platform, {})
                standing.attached[change.platform] = {**before, **change.attachments}

    def _forsake(self, version: str, at: str) -> None:
        """A yanked version leaves its channels; each goes back to what it named before and still resolves."""
        for names in self.channels.values():
            if not names or names[-1] != version:
                continue
            while names and not self.releases.setdefault(names[-1], VersionState()).unmarked():
                self._left(names.pop(), at)


def parse_version_state(version: str, entry: Mapping[str, Any]) -> VersionState:
    """A release as the index has it. Raises ValueError, KeyError, TypeError or AttributeError."""
    damaged = entry.get("damaged") or {}
    files = {**entry["platforms"], **{platform: held for platform, held in damaged.items() if held}}
    if not is_version(version) or not all(map(is_platform, files)):
        raise ValueError(version)
    return VersionState(
        created=_text(entry, "created"),
        platforms={platform: _bytes(held) for platform, held in files.items()},
        damaged=set(damaged),
        yanked=entry.get("yanked") is True,
        kept=entry.get("kept") is True,
        hidden_at=_text(entry, "hidden_at"),
        pruned=entry["state"] == "pruned",
        named_until=_text(entry, "named_until"),
        reason=_text(entry, "reason"),
        attached={platform: _attached(named) for platform, named in (entry.get("attached") or {}).items()},
    )


def _bytes(held: Mapping[str, Any]) -> StoredFile:
    sha256, size = held["sha256"], held["size"]
    if not is_sha256(sha256) or not isinstance(size, int):
        raise ValueError(sha256)
    return StoredFile(
        sha256=sha256,
        size=size,
        source=_text(held, "source"),
        external=held.get("external") is True,
        kind=_text(held, "kind") or IMAGE,
    )


def _attached(named: Mapping[str, Any]) -> Mapping[str, str]:
    if not all(isinstance(one, str) and is_sha256(one) for one in named.values()):
        raise ValueError(named)
    return dict(named)


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key, "")
    if not isinstance(value, str):
        raise TypeError(key)
    return value


def parse_channels(channels: Mapping[str, Any], history: Mapping[str, Any]) -> dict[str, list[str]]:
    """What each channel named, as the index has it. Raises ValueError, TypeError, AttributeError."""
    names = {channel: [version] for channel, version in channels.items()} | dict(history)
    for channel, versions in names.items():
        if not is_channel(channel) or not isinstance(versions, list) or not all(map(is_version, versions)):
            raise ValueError(channel)
    return names
