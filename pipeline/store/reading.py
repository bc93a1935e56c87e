"""The present state of an image.

It follows from its records and events. `read_truth` reads all of them; `fold_events` with `add_versions`
reads the events and the records of some versions. All code that deletes, hides, marks or moves uses these.

`load` and `read_head` are for display and look-up: they use the caches where those are sound and name an
event that is there, add what came after, and read the truth otherwise. Only the standard library is imported
here: `sqshpipe resolve` comes this way.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config.names import DEFAULT_PLATFORM, is_of
from pipeline.store import index, sealed
from pipeline.store.events import checksum_of, read_events
from pipeline.store.index import Head, head_of
from pipeline.store.layout import INDEX, LINK_SUFFIX, RECORD_SUFFIX, Layout
from pipeline.store.record import DATA, Record, parse_own
from pipeline.store.state import ImageState
from pipeline.text import escaped

Signature = tuple[int, int]
"""Inode and modification time (ns): shows whether a file is still the one that was read or written."""
_SCHEMA = re.compile(rb'\s*\{\s*"schema"\s*:\s*([0-9]+)')


@dataclass(slots=True)
class Loaded:
    """A state, and the other files that were found in the image's folder."""

    state: ImageState
    index: bytes = b""
    """The bytes of the index file; empty when it is missing or cannot be used."""
    signature: Signature = (0, 0)
    links: set[str] = field(default_factory=set)
    skipped: set[str] = field(default_factory=set)
    """Stems of files among the records that are not releases: claims of channels, and what cannot be read."""
    broken: list[str] = field(default_factory=list)
    """Records that could not be read, one sentence each."""


def read_record(layout: Layout, image: str, version: str, platform: str) -> Record | None:
    """The record of that release; None when it is missing. Raises UnreadableError when it is damaged."""
    return _read_record(layout.record(image, version, platform))


def read_data(layout: Layout, image: str, version: str) -> Record | None:
    """The record of that release when it is data, which every platform takes; None otherwise."""
    record = read_record(layout, image, version, DEFAULT_PLATFORM)
    return record if record is not None and record.kind == DATA else None


def _read_record(path: str | Path) -> Record | None:
    try:
        return parse_own(sealed.read_bytes(path), path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_truth(layout: Layout, image: str) -> Loaded:
    """All records and events of `image`, read now. A record that cannot be read, or is missing though events
    name its version, is reported in `broken`.

    Raises UnreadableError for an event that is damaged or missing: then nothing is known of the image.
    """
    loaded = Loaded(ImageState(image=image))
    fold_events(layout, loaded.state)
    _add_records(layout, loaded, records_in(layout.image(image), loaded.links))
    for version, standing in loaded.state.releases.items():
        if not standing.platforms and not any(is_of(name, version) for name in loaded.skipped):
            path = layout.image(image) / (version + RECORD_SUFFIX)
            loaded.broken.append(f"{escaped(str(path))} is missing: events name that version")
    return loaded


def fold_events(layout: Layout, state: ImageState) -> ImageState:
    """Apply the events after the last one in `state`. Raises UnreadableError for a damaged event."""
    for event in read_events(layout, state.image, state.events):
        state.apply(event)
    return state


def add_versions(layout: Layout, state: ImageState, versions: Iterable[str]) -> set[str]:
    """Read the records of `versions`, of every platform, into `state`. Gives the stems of all records.

    Raises UnreadableError when one of them is damaged.
    """
    wanted = frozenset(versions)
    if not wanted:
        return set()
    there = records_in(layout.image(state.image), set())
    begins = tuple(f"{version}." for version in wanted)
    for name in sorted(name for name in there if name in wanted or name.startswith(begins)):
        try:
            record = _read_record(f"{layout.image(state.image)}/{name}{RECORD_SUFFIX}")
        except sealed.UnreadableError:
            if any(is_of(name, version) for version in wanted):
                raise
            continue
        if record is not None and record.version in wanted:
            state.add(record)
    return there


def kind_of(layout: Layout, state: ImageState, stems: Iterable[str]) -> str | None:
    """The kind of an image's releases, which all have the same: that of the first record that can be read, of
    these stems and of what channels name, since a listing may be late. None without such a record.
    """
    for name in sorted({*stems, *(named[-1] for named in state.channels.values() if named)}):
        with suppress(sealed.UnreadableError):
            if record := _read_record(f"{layout.image(state.image)}/{name}{RECORD_SUFFIX}"):
                return record.kind
    return None


def load(layout: Layout, image: str) -> Loaded:
    """For display: the index where it is valid, with the events and records that came after it.

    Raises UnreadableError for a damaged event or an index of a newer schema; a record that cannot be read is
    reported in `broken` and left out.
    """
    links: set[str] = set()
    there = records_in(layout.image(image), links)
    loaded = _from_index(layout, image, there) or Loaded(ImageState(image=image))
    fold_events(layout, loaded.state)
    _add_records(layout, loaded, there)
    loaded.links = links
    return loaded


def _add_records(layout: Layout, loaded: Loaded, there: set[str]) -> None:
    """Take in the records of the stems `there` that the state does not have."""
    state = loaded.state
    folder = layout.image(state.image)
    for name in sorted(there.difference(name for name, _, _, _ in state.stems())):
        try:
            record = _read_record(f"{folder}/{name}{RECORD_SUFFIX}")
        except sealed.UnreadableError as error:
            loaded.broken.append(error.message)
            loaded.skipped.add(name)
            continue
        if record is None:
            loaded.skipped.add(name)
        else:
            state.add(record)


def _from_index(layout: Layout, image: str, there: set[str]) -> Loaded | None:
    """The index, when it is sound and its records and its newest event are still there."""
    path = layout.index(image)
    signature = signature_of(path)  # before it is read: another one may come meanwhile
    raw = cache_bytes(path)
    state = index.read_index(raw, image)
    if state is None or not _contains(layout, image, state.events, state.newest_event):
        return None
    gone = [name for name, _, _, _ in state.stems() if name not in there]
    if any(not exists(layout.image(image) / (name + RECORD_SUFFIX)) for name in gone):
        return None
    return Loaded(state, raw, signature)


def _contains(layout: Layout, image: str, events: int, newest: str) -> bool:
    """Whether the newest event of a cache is the one that the image has under that number."""
    return not events or checksum_of(layout, image, events) == newest


def cache_bytes(path: Path) -> bytes:
    """The content of a cache file; empty when it is not a file or cannot be read.

    Raises UnreadableError when a newer sqshpipe wrote it: it knows more than this one can write.
    """
    try:
        raw = sealed.read_bytes(path, limit=sealed.LARGE)
    except (OSError, sealed.UnreadableError):
        return b""
    found = _SCHEMA.match(raw[:100])
    if found and int(found[1]) > index.SCHEMA and (sealed.is_sealed(raw) or b'"crc32"' not in raw[-100:]):
        raise sealed.UnreadableError(
            f"{escaped(str(path))} has schema {found[1].decode()}; this sqshpipe knows up to {index.SCHEMA}",
            hint="a newer sqshpipe writes this store: upgrade this one",
        )
    return raw


def refuse_newer(layout: Layout, image: str) -> None:
    """Raise UnreadableError when a newer sqshpipe wrote a cache that a change of `image` writes."""
    for path in (layout.manifest, layout.index(image), layout.head(image)):
        cache_bytes(path)


def lost_events(layout: Layout, state: ImageState, *, listed: int = 0) -> str:
    """The sentence for a sound cache that contains more events than are there; empty when none does.

    `listed` is how many manifest.json contains.
    """
    image = state.image
    head = index.read_head(cache_bytes(layout.head(image)), image)
    line = index.read_first_line(cache_bytes(layout.index(image)), image)
    for path, number in (
        (layout.head(image), head.events if head else 0),
        (layout.index(image), line[0] if line else 0),
        (layout.manifest, listed),
    ):
        if number > state.events and not exists(layout.event(image, number)):
            missing = escaped(str(layout.event(image, number)))
            return f"{missing} is missing: {path.name} contains it"
    return ""


def lost_image(layout: Layout, image: str) -> str:
    """The sentence for an image that manifest.json names and that has no folder."""
    return f"{escaped(str(layout.image(image)))} is missing: {layout.manifest.name} names its releases"


def signature_of(path: Path) -> Signature:
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return (0, 0)
    return status.st_ino, status.st_mtime_ns


def records_in(folder: Path, links: set[str]) -> set[str]:
    """Stems of the records in `folder`; the names of its symlinks are added to `links`."""
    try:
        found = os.listdir(folder)  # noqa: PTH208 - thousands of them
    except (FileNotFoundError, NotADirectoryError):
        return set()
    names = [name for name in found if not name.startswith(".")]
    links.update(name for name in names if name.endswith(LINK_SUFFIX))
    suffix = len(RECORD_SUFFIX)
    return {name[:-suffix] for name in names if name.endswith(RECORD_SUFFIX) and name != INDEX}


def read_head(layout: Layout, image: str) -> Head | None:
    """head.json when it is sound and nothing has happened since it was written, else None."""
    head = index.read_head(cache_bytes(layout.head(image)), image)
    if head is None or not _contains(layout, image, head.events, head.newest_event):
        return None
    return None if exists(layout.event(image, head.events + 1)) else head


def current_head(layout: Layout, image: str) -> Head:
    """What resolving needs in addition to a record: head.json, else what follows from all events.

    Raises UnreadableError for a damaged event.
    """
    return read_head(layout, image) or head_of(fold_events(layout, ImageState(image=image)))


def index_is_current(layout: Layout, image: str, raw: bytes) -> bool:
    """Whether `raw` is the sealed index of `image`, and nothing has happened since it was written."""
    line = index.read_first_line(raw, image)
    return (
        line is not None and _contains(layout, image, *line) and not exists(layout.event(image, line[0] + 1))
    )


def exists(path: Path) -> bool:
    """Whether `path` exists, also as a broken symlink. Raises OSError when that cannot be found out."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
