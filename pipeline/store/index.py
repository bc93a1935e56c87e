"""index.json and head.json: a state as text, and back. Pure.

Both are caches. They name the newest event that they contain by its number and by the checksum of its file,
so that an older one, another image's, and one of a store whose events were lost are all noticed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from pipeline.config.names import is_channel, is_version, stem
from pipeline.store import sealed
from pipeline.store.state import ImageState, VersionState, parse_channels, parse_version_state

SCHEMA = 1
_ENTRY = re.compile(
    rb'\n"([a-z0-9._-]+)": \{"schema": 1, "image": "([a-z0-9._-]+)", "events": ([0-9]{1,12}),'
)
_DAMAGED = (KeyError, TypeError, AttributeError, ValueError, RecursionError)


@dataclass(frozen=True, slots=True)
class Head:
    """The few values that resolving needs in addition to a record; it follows from the events alone."""

    events: int
    newest_event: str
    channels: dict[str, str]
    states: dict[str, str]
    """Versions that do not resolve, and why."""
    damaged: frozenset[str]
    """Stems of records whose bytes are damaged."""


def write_index(state: ImageState) -> bytes:
    """The file index.json: one line for each release, so that people can read it and diffs stay short."""
    channels = {channel: names[-1] for channel, names in sorted(state.channels.items()) if names}
    history = {channel: names for channel, names in sorted(state.channels.items()) if len(names) != 1}
    ordered = sorted(state.releases.items(), key=lambda item: (item[1].created, item[0]))
    lines = [f'"{version}": {json.dumps(_version_state_json(one))}' for version, one in ordered]
    return sealed.seal(
        json.dumps(_first_line(state))[:-1]
        + f',\n"channels": {json.dumps(channels)},\n"history": {json.dumps(history)},\n"releases": {{'
        + ("\n" + ",\n".join(lines) + "\n" if lines else "")
        + "}}"
    )


def _first_line(state: ImageState) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "image": state.image,
        "events": state.events,
        "newest_event": state.newest_event,
    }


def _version_state_json(standing: VersionState) -> dict[str, Any]:
    good = {p: held.as_json() for p, held in standing.platforms.items() if p not in standing.damaged}
    data: dict[str, Any] = {"state": standing.state(), "created": standing.created, "platforms": good}
    if standing.damaged:
        data["damaged"] = {
            platform: held.as_json() if (held := standing.platforms.get(platform)) else None
            for platform in sorted(standing.damaged)
        }
    for name in ("yanked", "kept", "hidden_at", "named_until", "reason", "attached"):
        if value := getattr(standing, name):
            data[name] = value
    return data


def read_index(raw: bytes, image: str) -> ImageState | None:
    """Read what `write_index` wrote; None for anything else, also for the index of another image."""
    data = sealed.parse_cache(raw)
    if data is None or data.get("image") != image:
        return None
    try:
        return ImageState(
            image=image,
            events=_count(data["events"]),
            newest_event=str(data["newest_event"]),
            releases={
                version: parse_version_state(version, one) for version, one in data["releases"].items()
            },
            channels=parse_channels(data["channels"], data["history"]),
        )
    except _DAMAGED:
        return None


def read_first_line(raw: bytes, image: str) -> tuple[int, str] | None:
    """Number and checksum of the newest event that an index contains, without parsing all of it.

    None when it is not the sealed index of `image`.
    """
    if not sealed.is_sealed(raw):
        return None
    try:
        data = json.loads(raw.partition(b"\n")[0].rstrip(b",") + b"}")
        return (_count(data["events"]), str(data["newest_event"])) if data["image"] == image else None
    except _DAMAGED:
        return None


def entries(raw: bytes) -> dict[str, tuple[int, bytes]]:
    """The images in a manifest.json: (number of the newest event, the index as it was put in) of each.

    Empty when it is not sealed.
    """
    if not sealed.is_sealed(raw):
        return {}
    found = [match for match in _ENTRY.finditer(raw) if match[1] == match[2]]
    ends = [match.start() for match in found[1:]] + [raw.rfind(b"\n}")]
    return {
        match[1].decode(): (int(match[3]), raw[match.start() + len(match[1]) + 5 : end].rstrip(b",\n"))
        for match, end in zip(found, ends, strict=False)
    }


def head_of(state: ImageState) -> Head:
    """The head that follows from a state."""
    standings = state.releases.items()
    return Head(
        events=state.events,
        newest_event=state.newest_event,
        channels={channel: names[-1] for channel, names in sorted(state.channels.items()) if names},
        states={version: word for version, one in standings if (word := one.state("")) != "published"},
        damaged=frozenset(stem(version, name) for version, one in standings for name in one.damaged),
    )


def write_head(state: ImageState) -> bytes:
    """head.json: what resolving needs in addition to a record; small, however many releases there are."""
    head = head_of(state)
    states, damaged = dict(sorted(head.states.items())), sorted(head.damaged)
    data = {**_first_line(state), "channels": head.channels, "states": states, "damaged": damaged}
    return sealed.seal(json.dumps(data))


def read_head(raw: bytes, image: str) -> Head | None:
    """Read what `write_head` wrote; None for anything else, also for the head of another image."""
    data = sealed.parse_cache(raw)
    if data is None or data.get("image") != image:
        return None
    try:
        channels, states, damaged = data["channels"], data["states"], data["damaged"]
        texts = [*channels, *channels.values(), *states, *states.values(), *damaged]
        if not all(isinstance(text, str) for text in texts):
            return None
        if not all(map(is_channel, channels)) or not all(map(is_version, channels.values())):
            return None
        events = _count(data["events"])
        return Head(events, str(data["newest_event"]), channels, states, frozenset(damaged))
    except _DAMAGED:
        return None


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(value)
    return value
