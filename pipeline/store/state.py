"""What is true of one image: its records with its events folded over them. Pure: no clock, no disk.

A state can be written as index.json and read back, so that the next one who wants it reads only what came
since.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.store.events import Event
from pipeline.store.names import stem
from pipeline.store.record import Record, check_schema

SCHEMA = 1
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


@dataclass(slots=True, kw_only=True)
class ImageState:
    """All of one image: versions in the order in which they were published, channels with their history."""

    image: str
    events: int = 0
    """Number of the last event that is folded in."""
    releases: dict[str, Standing] = field(default_factory=dict)
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


def write_index(state: ImageState) -> str:
    """The text of index.json: one release a line, so that people can read it and diffs stay short."""
    head = {"schema": SCHEMA, "image": state.image, "events": state.events}
    channels = {channel: names[-1] for channel, names in sorted(state.channels.items()) if names}
    history = {channel: names for channel, names in sorted(state.channels.items()) if len(names) != 1}
    ordered = sorted(state.releases.items(), key=lambda item: (item[1].created, item[0]))
    lines = [f"{json.dumps(name)}: {json.dumps(_standing_json(standing))}" for name, standing in ordered]
    return (
        json.dumps(head)[:-1]
        + f',\n"channels": {json.dumps(channels)},\n"history": {json.dumps(history)},\n"releases": {{'
        + ("\n" + ",\n".join(lines) + "\n" if lines else "")
        + "}}\n"
    )


def _standing_json(standing: Standing) -> dict[str, Any]:
    good = {p: held.as_json() for p, held in standing.platforms.items() if p not in standing.damaged}
    data: dict[str, Any] = {"state": standing.state(), "created": standing.created, "platforms": good}
    if standing.damaged:
        data["damaged"] = {
            platform: held.as_json() if (held := standing.platforms.get(platform)) else None
            for platform in sorted(standing.damaged)
        }
    optional = {
        "yanked": standing.yanked,
        "kept": standing.kept,
        "hidden_at": standing.hidden_at,
        "named_until": standing.named_until,
        "reason": standing.reason,
    }
    data.update({key: value for key, value in optional.items() if value})
    return data


def read_index(raw: bytes, path: Path) -> ImageState:
    """Read what `write_index` wrote. Raises PublishError for a newer schema, ValueError when it is
    damaged.
    """
    data = check_schema(json.loads(raw), path, newest=SCHEMA)
    try:
        state = ImageState(image=data["image"], events=int(data["events"]))
        for version, entry in data["releases"].items():
            state.releases[version] = _standing(entry)
        history = data.get("history", {})
        for channel, version in data["channels"].items():
            state.channels[channel] = history.get(channel) or [version]
        for channel in history:
            state.channels.setdefault(channel, [])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error!r}") from error
    return state


def _standing(entry: Mapping[str, Any]) -> Standing:
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


def write_head(state: ImageState) -> str:
    """The text of head.json: what resolving needs beside a record, and small however many releases there
    are.
    """
    channels = {channel: names[-1] for channel, names in sorted(state.channels.items()) if names}
    states = {name: word for name, one in state.releases.items() if (word := one.state("")) != "published"}
    damaged = [
        name for name, version, platform, _ in state.stems() if platform in state.releases[version].damaged
    ]
    data = {"schema": SCHEMA, "image": state.image, "events": state.events, "channels": channels}
    return json.dumps({**data, "states": states, "damaged": damaged}) + "\n"
