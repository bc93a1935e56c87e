"""index.json and head.json: a state as text, and back. Pure, and quick with ten thousand releases."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pipeline.store.names import stem
from pipeline.store.record import check_schema
from pipeline.store.state import ImageState, Line, Releases, Standing, parse_standing

SCHEMA = 1
_OPENED, _CLOSED = '"releases": {\n', "\n}}\n"
_USUAL = re.compile(
    r'"([A-Za-z0-9._-]+)": '
    r'(\{"state": "published", "created": "([^"\\]*)", "platforms": '
    r'\{"linux/amd64": \{"file": "([^"\\]*)", "sha256": "([0-9a-f]{64})", "size": ([0-9]+)'
    r'(?:, "source": "([^"\\]*)")?(, "external": true)?\}\}'
    r'(, "kept": true)?(?:, "named_until": "([^"\\]*)")?\})'
)


def write_index(state: ImageState) -> str:
    """The text of index.json: one release a line, so that people can read it and diffs stay short."""
    head = {"schema": SCHEMA, "image": state.image, "events": state.events}
    channels = {channel: names[-1] for channel, names in sorted(state.channels.items()) if names}
    history = {channel: names for channel, names in sorted(state.channels.items()) if len(names) != 1}
    lines = [
        f'"{version}": {one.text if isinstance(one, Line) else json.dumps(_standing_json(one))}'
        for version, one in state.releases.raw()
    ]
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
    """Read what `write_index` wrote, or the same JSON written otherwise.

    Raises PublishError for a newer schema, ValueError when it is damaged.
    """
    head, opened, body = raw.decode().partition(_OPENED)
    ours = bool(opened) and body.endswith(_CLOSED)
    data = check_schema(json.loads(head + _OPENED + "}}" if ours else raw), path, newest=SCHEMA)
    try:
        state = ImageState(image=data["image"], events=int(data["events"]))
        if ours:
            for line in body[: -len(_CLOSED)].split("\n"):
                _take(state.releases, line)
        for version, entry in data["releases"].items():
            state.releases[version] = parse_standing(entry)
        history = data.get("history", {})
        for channel, version in data["channels"].items():
            state.channels[channel] = history.get(channel) or [version]
        for channel in history:
            state.channels.setdefault(channel, [])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error!r}") from error
    return state


def _take(releases: Releases, line: str) -> None:
    """Take one line in: as it is when it is of the usual kind, else parsed."""
    match = _USUAL.match(line)
    if match and match.end() >= len(line) - 1:  # a comma may follow
        version, text, created, file, sha256, size, source, external, kept, until = match.groups()
        held = Line(
            text,
            created,
            file,
            sha256,
            int(size),
            kept is not None,
            source or "",
            external is not None,
            until or "",
        )
        releases.take(version, held)
        return
    for version, entry in json.loads("{" + line.rstrip(",") + "}").items():
        releases[version] = parse_standing(entry)


def write_head(state: ImageState) -> str:
    """The text of head.json: what resolving needs beside a record, and small however many releases there
    are.
    """
    channels = {channel: names[-1] for channel, names in sorted(state.channels.items()) if names}
    special = [(version, one) for version, one in state.releases.raw() if isinstance(one, Standing)]
    states = {version: word for version, one in special if (word := one.state("")) != "published"}
    damaged = sorted(
        stem(version, platform)
        for version, one in special
        for platform in one.platforms
        if platform in one.damaged
    )
    data = {"schema": SCHEMA, "image": state.image, "events": state.events, "channels": channels}
    return json.dumps({**data, "states": states, "damaged": damaged}) + "\n"
