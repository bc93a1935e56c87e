"""What was done to an image's releases after they were published: one file an event, made once, numbered.

The number is taken by link(2), so events have one order that no clock decides: of two that decide at once,
one gets the next number and the other looks again at what is true now.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from pipeline.errors import PublishError
from pipeline.store import atomic
from pipeline.store.layout import Layout
from pipeline.store.record import check_schema

SCHEMA = 1
KINDS = frozenset(
    {
        *("promote", "rollback", "yank", "unyank", "keep", "unkeep"),
        *("hide", "unhide", "delete", "restore", "damaged", "repaired"),
    }
)
_ATTEMPTS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What somebody wants to do: the event without its number, writer and time."""

    kind: str
    version: str
    channel: str = ""
    previous: str = ""
    """What the channel named before ("from" in the file)."""
    sha256: str = ""
    platform: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A change that happened."""

    number: int
    change: Change
    by: str
    at: str


def now() -> str:
    """This moment as the store writes it: UTC, microseconds, sortable as text."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def moment(text: str) -> datetime:
    """A time that `now` or a record wrote. What cannot be read counts as the beginning of 1970."""
    try:
        parsed = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return datetime.fromtimestamp(0, timezone.utc)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)


def whoami() -> str:
    """user@host, for the history."""
    import pwd

    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    return f"{user}@{os.uname().nodename}"


def read_event(layout: Layout, image: str, number: int) -> Event | None:
    """The event of that number; None when there is none yet. Raises PublishError when it is damaged."""
    path = layout.event(image, number)
    try:
        raw = atomic.read_bytes(path)
    except FileNotFoundError:
        return None
    try:
        data = check_schema(json.loads(raw), path, newest=SCHEMA)
        kind = str(data["event"])
    except (ValueError, KeyError, RecursionError) as error:
        raise PublishError(f"{path} is damaged: {error}", hint="restore it from a backup") from error
    if kind not in KINDS:
        raise PublishError(
            f"{path} holds an event {kind!r} that this sqshpipe does not know", hint="upgrade this one"
        )

    def text(key: str) -> str:
        value: Any = data.get(key)
        return value if isinstance(value, str) else ""

    change = Change(
        kind=kind,
        version=text("version"),
        channel=text("channel"),
        previous=text("from"),
        sha256=text("sha256"),
        platform=text("platform"),
        reason=text("reason"),
    )
    return Event(number=number, change=change, by=text("by"), at=text("at"))


def read_events(layout: Layout, image: str, after: int) -> Iterator[Event]:
    """Events with a number above `after`, in order; asks by name, since a listing may be late."""
    number = after + 1
    while (event := read_event(layout, image, number)) is not None:
        yield event
        number += 1


def append(layout: Layout, image: str, decide: Callable[[], tuple[int, Change | None]]) -> Event | None:
    """Make the next event of `image`.

    `decide` looks at the store and gives the number of the last event it took into account with the change to
    make, or None when nothing is left to do (then None is returned). It is asked again whenever somebody else
    was faster; what it raises ends the attempt.
    """
    for _ in range(_ATTEMPTS):
        last, change = decide()
        if change is None:
            return None
        event = Event(number=last + 1, change=change, by=whoami(), at=now())
        if atomic.create(layout.event(image, event.number), _as_bytes(image, event)):
            return event
        atomic.patiently(lambda taken=event.number: layout.event(image, taken).stat())  # type: ignore[misc]
    raise PublishError(f"no event of {image} could be made: others were always faster", hint="run it again")


def _as_bytes(image: str, event: Event) -> bytes:
    change = event.change
    data: dict[str, Any] = {"schema": SCHEMA, "event": change.kind, "image": image, "version": change.version}
    optional = {
        "channel": change.channel,
        "from": change.previous,
        "sha256": change.sha256,
        "platform": change.platform,
        "reason": change.reason,
    }
    data.update({key: value for key, value in optional.items() if value})
    data.update({"by": event.by, "at": event.at})
    # in JSON the escape of a lone surrogate, which a reason given as bytes that are no text can hold
    return (json.dumps(data, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
