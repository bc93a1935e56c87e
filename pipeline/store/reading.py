"""What is true of an image now, read at the least cost: its index, and what came after the index was written.

Only the standard library is imported here: `sqshpipe resolve` comes this way.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import PublishError
from pipeline.store import atomic
from pipeline.store.events import read_events
from pipeline.store.index import read_index, write_head
from pipeline.store.layout import INDEX, LINK_SUFFIX, RECORD_SUFFIX, Layout
from pipeline.store.names import stem
from pipeline.store.record import Record, check_schema, is_claim, parse_record
from pipeline.store.state import ImageState

Signature = tuple[int, int]
"""Inode and modification time (ns): tells whether a file is still the one that was read or written."""


@dataclass(frozen=True, slots=True)
class Head:
    """The little that resolving needs beside a record."""

    events: int
    channels: dict[str, str]
    states: dict[str, str]
    """Versions that do not resolve, and why."""
    damaged: frozenset[str]
    """Stems of records whose bytes are damaged."""


@dataclass(slots=True)
class Loaded:
    """A state with what was found on disk beside it."""

    state: ImageState
    index: str
    """Text of the index as it lies there; empty when there is none that can be used."""
    signature: Signature = (0, 0)
    links: set[str] = field(default_factory=set)
    broken: list[str] = field(default_factory=list)
    """Records that could not be read, one sentence each."""


def read_record(layout: Layout, image: str, version: str, platform: str) -> Record | None:
    """The record of that release; None when there is none. Raises PublishError when it is damaged."""
    path = layout.record(image, version, platform)
    try:
        raw = atomic.read_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return None if is_claim(raw) else _own(parse_record(raw, path), image, stem(version, platform), path)


def _own(record: Record, image: str, name: str, path: Path) -> Record:
    if (record.image, stem(record.version, record.platform)) != (image, name):
        raise PublishError(
            f"{path} is the record of {record.image}:{record.version} for {record.platform}",
            hint="a record must not be moved or copied by hand",
        )
    return record


def load(layout: Layout, image: str, *, rebuild: bool = False) -> Loaded:
    """What is true of `image` now: the index, with the events and records that came after it.

    With `rebuild` the index is not used. Raises PublishError for a damaged event or an index of a newer
    schema; a record that cannot be read is told in `broken` and left out.
    """
    loaded = Loaded(ImageState(image=image), "") if rebuild else _from_index(layout, image)
    state = loaded.state
    for event in read_events(layout, image, state.events):
        state.apply(event)
    known = {file.stem for file in state.files()} | state.channels.keys()
    for name in sorted(records_in(layout.image(image), loaded.links) - known):
        path = layout.image(image) / (name + RECORD_SUFFIX)
        raw = atomic.read_bytes(path)
        if is_claim(raw):
            continue
        try:
            state.add(_own(parse_record(raw, path), image, name, path))
        except PublishError as error:
            loaded.broken.append(error.headline)
    return loaded


def _from_index(layout: Layout, image: str) -> Loaded:
    path = layout.index(image)
    try:
        signature = signature_of(path)
        raw = atomic.read_bytes(path)
        return Loaded(read_index(raw, path), raw.decode(), signature)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return Loaded(ImageState(image=image), "")


def signature_of(path: Path) -> Signature:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def records_in(folder: Path, links: set[str]) -> set[str]:
    """Stems of the records in `folder`; the names of its symlinks are added to `links`."""
    records: set[str] = set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                if name.endswith(RECORD_SUFFIX) and name != INDEX:
                    records.add(name.removesuffix(RECORD_SUFFIX))
                elif name.endswith(LINK_SUFFIX):
                    links.add(name)
    except (FileNotFoundError, NotADirectoryError):
        return records
    return records


def read_head(layout: Layout, image: str) -> Head | None:
    """head.json when it is there and nothing has happened since it was written, else None."""
    path = layout.head(image)
    try:
        data = check_schema(json.loads(atomic.read_bytes(path)), path)
        head = Head(data["events"], data["channels"], data["states"], frozenset(data["damaged"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if exists(layout.event(image, head.events + 1)) else head


def exists(path: Path) -> bool:
    """Whether there is something of that name; anything but a plain no is raised."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def head_of(state: ImageState) -> Head:
    """The head that follows from a state."""
    data = json.loads(write_head(state))
    return Head(data["events"], data["channels"], data["states"], frozenset(data["damaged"]))
