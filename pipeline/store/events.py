"""What was done to the releases of an image after publishing. Each event is one numbered file, written once.

The number is taken by link(2), so events have one order that no clock decides: of two that decide at once,
one gets the next number and the other looks again at what is true now.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

from pipeline.config.names import is_channel, is_version
from pipeline.errors import PublishError
from pipeline.store import sealed
from pipeline.store.layout import Layout
from pipeline.store.record import is_sha256
from pipeline.system import atomic
from pipeline.text import escaped

SCHEMA = 1
KINDS = frozenset(
    {
        *("promote", "rollback", "yank", "unyank", "keep", "unkeep"),
        *("hide", "unhide", "delete", "restore", "damaged", "repaired"),
    }
)
_TEXTS = ("event", "version", "channel", "from", "sha256", "platform", "reason", "check", "by", "at")
CONTENT = "content"
_ATTEMPTS = 1000
_NAME = re.compile(r"([0-9]{8,12})\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The content of an event before it is written: without number, writer and time."""

    kind: str
    version: str
    channel: str = ""
    previous: str = ""
    """What the channel named before ("from" in the file)."""
    sha256: str = ""
    platform: str = ""
    reason: str = ""
    check: str = ""
    """CONTENT in a `damaged` event: the bytes are those that were published, and what is in them is wrong."""
    attachments: Mapping[str, str] = field(default_factory=dict)
    """sha256 by name, in a `repaired` event: what was attached later, believed as if the record named it.
    Who does not know this key sees a platform repaired that is not damaged, which changes nothing.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A change that happened."""

    number: int
    change: Change
    by: str
    at: str
    checksum: str = ""
    """CRC-32 of the whole file, by which caches name the newest event that they contain."""


def now() -> str:
    """The present time as the store writes it: UTC, with microseconds, sortable as text."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def moment(text: str) -> datetime:
    """A time that `now` or a record wrote. What cannot be read counts as the beginning of 1970."""
    try:
        parsed = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return datetime.fromtimestamp(0, timezone.utc)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)


def user_name() -> str:
    """Who runs this: the name, or the number where the system has no name for it."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def whoami() -> str:
    """user@host, for the history."""
    return f"{user_name()}@{os.uname().nodename}"


def read_event(layout: Layout, image: str, number: int) -> Event | None:
    """The event of that number; None when it does not exist yet. Raises UnreadableError for a damaged one."""
    path = layout.event_name(image, number)
    try:
        raw = sealed.read_bytes(path)
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise sealed.damaged(layout.events(image), "not a folder") from error
    data = sealed.check_schema(sealed.parse(raw, path), path, newest=SCHEMA)
    if data.get("image", image) != image or data.get("number", number) != number:
        raise sealed.damaged(path, f"it is event {data.get('number', number)!r} of {data.get('image')!r}")
    texts = [data.get(key) or "" for key in _TEXTS]
    if set(map(type, texts)) != {str}:
        wrong = next(key for key, value in zip(_TEXTS, texts, strict=True) if not isinstance(value, str))
        raise sealed.damaged(path, f"{wrong} is not text")
    kind, version, channel, previous, sha256, platform, reason, check, by, at = texts
    change = Change(
        kind=kind,
        version=version,
        channel=channel,
        previous=previous,
        sha256=sha256,
        platform=platform,
        reason=reason,
        check=check,
        attachments=_attachments(data, path),
    )
    if change.kind and change.kind not in KINDS:
        raise sealed.UnreadableError(
            f"{escaped(path)} holds an event {change.kind!r} that this sqshpipe does not know",
            hint="upgrade this one",
        )
    names_channel = is_channel(change.channel) if change.kind in ("promote", "rollback") else True
    if not change.kind or not is_version(change.version) or not names_channel:
        raise sealed.damaged(path, "it does not say what was done to which version")
    return Event(number=number, change=change, by=by, at=at, checksum=sealed.checksum(raw))


def _attachments(data: dict[str, Any], path: str) -> Mapping[str, str]:
    found = data.get("attachments") or {}
    if not isinstance(found, dict) or not all(
        isinstance(one, str) and is_sha256(one) for one in found.values()
    ):
        raise sealed.damaged(path, "an attachment is not named by 64 hex digits")
    return found


def read_events(layout: Layout, image: str, after: int) -> Iterator[Event]:
    """Events with a number above `after`, in order; asks by name, since a listing may be late.

    Raises UnreadableError for one that is damaged and, when read from the beginning, for one that is missing
    before a later one.
    """
    number = after + 1
    while True:
        event = read_event(layout, image, number)
        if event is None and after == 0 and last_listed(layout, image) > number:
            event = _listed_later(layout, image, number)
        if event is None:
            return
        yield event
        number += 1


def wrong_content(layout: Layout, image: str, version: str, platform: str) -> str:
    """Why a scrub marked a file whose bytes are those that were published; empty when it did not.

    Such a file is not repaired by the same bytes.
    """
    reason = ""
    for event in read_events(layout, image, 0):
        change = event.change
        if (change.version, change.platform) == (version, platform) and change.kind in (
            "damaged",
            "repaired",
        ):
            reason = change.reason if (change.kind, change.check) == ("damaged", CONTENT) else ""
    return reason


def last_listed(layout: Layout, image: str) -> int:
    """The highest event number in a listing of the image's folder of events; 0 without events.

    Raises UnreadableError when the folder cannot be listed.
    """
    folder = layout.events(image)
    try:
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise sealed.damaged(folder, error.strerror) from error
    return max((int(found[1]) for name in names if (found := _NAME.fullmatch(name))), default=0)


def _listed_later(layout: Layout, image: str, number: int) -> Event:
    """An event with a number below one that is listed: a network file system may show it late."""

    def look() -> Event:
        event = read_event(layout, image, number)
        if event is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return event

    try:
        return atomic.patiently(look)
    except FileNotFoundError as error:
        path = layout.event(image, number)
        raise sealed.damaged(path, "it is missing, and later events are there") from error


def checksum_of(layout: Layout, image: str, number: int) -> str:
    """The checksum of the file of that event; empty when it is missing or cannot be read."""
    try:
        return sealed.checksum(sealed.read_bytes(layout.event(image, number)))
    except (OSError, sealed.UnreadableError):
        return ""


def append(layout: Layout, image: str, decide: Callable[[], tuple[int, Change | None]]) -> Event | None:
    """Write the next event of `image`.

    `decide` looks at the store. It returns the number of the last event that it took into account and the
    change to make, or None for no change (then None is returned). It is called again whenever another process
    was faster; what it raises is raised here.
    """
    for _ in range(_ATTEMPTS):
        last, change = decide()
        if change is None:
            return None
        event = Event(number=last + 1, change=change, by=whoami(), at=now())
        content = as_bytes(image, event)
        if atomic.create(layout.event(image, event.number), content):
            return replace(event, checksum=sealed.checksum(content))
        atomic.patiently(lambda taken=event.number: layout.event(image, taken).stat())  # type: ignore[misc]
    raise PublishError(f"no event of {image} could be made: others were always faster", hint="run it again")


def as_bytes(image: str, event: Event) -> bytes:
    change = event.change
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "number": event.number,
        "event": change.kind,
        "image": image,
        "version": change.version,
    }
    optional: dict[str, Any] = {
        "channel": change.channel,
        "from": change.previous,
        "sha256": change.sha256,
        "platform": change.platform,
        "reason": change.reason,
        "check": change.check,
        "attachments": dict(change.attachments),
    }
    data.update({key: value for key, value in optional.items() if value})
    data.update({"by": event.by, "at": event.at})
    return sealed.seal(json.dumps(data, ensure_ascii=False))
