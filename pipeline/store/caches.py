"""What can be computed from records and events, kept ready: index.json, head.json, SHA256SUMS, symlinks,
manifest.json.

Any process may rewrite a cache at any time, from records and events. Two may do so at the same time, and the
slower one may know less. So a writer reads again and repeats until nothing has changed in between. Thus
the last writer always leaves the truth. Readers notice a stale or missing cache by the number of the next
event, and go to the records.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.names import stem
from pipeline.store import folders, sealed
from pipeline.store.index import SCHEMA, entries, read_first_line, read_index, write_head, write_index
from pipeline.store.layout import LINK_SUFFIX, Layout
from pipeline.store.reading import (
    Loaded,
    Signature,
    cache_bytes,
    exists,
    index_is_current,
    load,
    lost_events,
    lost_image,
    read_truth,
    records_in,
    signature_of,
)
from pipeline.store.state import File, ImageState
from pipeline.system import atomic
from pipeline.system.log import log

_ROUNDS = 200


def refresh(layout: Layout, image: str, *, rebuild: bool = False) -> Loaded:
    """Bring the caches of `image` up to date and return what they now contain.

    With `rebuild` the present ones are not used, and every link is read. Raises UnreadableError for a damaged
    event.
    """
    loaded = read_truth(layout, image) if rebuild else load(layout, image)
    for message in loaded.broken:
        log.warning("left out a record that cannot be read", reason=message)
    for _ in range(_ROUNDS):
        files = list(loaded.state.files())
        links = _Links.of(loaded.state, files)
        content, signature = write_index(loaded.state), loaded.signature
        links.repair(layout.image(image), loaded.links, every=rebuild)
        if content != loaded.index:
            if not loaded.index:
                _leave_traces(layout, loaded.state)
            _write(layout.sums(image), _sums(files).encode())
            signature = _write(layout.index(image), content)
        folders.make(layout.head(image).parent)
        if (head := write_head(loaded.state)) != cache_bytes(layout.head(image)):
            _write(layout.head(image), head)
        if _settled(layout, loaded, files, links, signature):
            break
        loaded = load(layout, image)
    return loaded  # where others keep changing it, each of them does the same after its change


def _leave_traces(layout: Layout, state: ImageState) -> None:
    """Before an index goes: its releases that have lost their record keep a symlink. `prune` leaves bytes
    that one names, and `store rebuild --restore` finds them by it.
    """
    old = read_index(cache_bytes(layout.index(state.image)), state.image)
    if old is None:
        return
    there = {name for name, _, _, _ in state.stems()}
    for name, version, _, held in old.stems():
        link = layout.image(state.image) / (name + LINK_SUFFIX)
        if name not in there and not old.releases[version].pruned and not os.path.lexists(link):
            atomic.replace_link(link, f"../{held.file}")


def rebuild(layout: Layout) -> list[str]:
    """Write the caches of all images again without using the present ones; returns what could not be read.

    Raises UnreadableError when a newer sqshpipe wrote one of them: it knows more than this one can write.
    """
    images = layout.images()
    for path in [layout.manifest, *map(layout.index, images), *map(layout.head, images)]:
        cache_bytes(path)
    broken: list[str] = []
    listed = entries(cache_bytes(layout.manifest))
    broken += [lost_image(layout, image) for image in sorted(listed.keys() - set(images))]
    for image in images:
        broken += _rebuild(layout, image, listed.get(image, (0, b""))[0])
    refresh_manifest(layout, forget=True)
    return broken


def _rebuild(layout: Layout, image: str, listed: int) -> list[str]:
    try:
        loaded = read_truth(layout, image)
        if not loaded.state.releases and not loaded.broken:
            return []
        lost = lost_events(layout, loaded.state, listed=listed)
        # A sound index may be all that says which bytes a damaged record had: it stays for `restore`.
        refresh(layout, image, rebuild=not loaded.broken)
        return [*filter(None, [lost]), *loaded.broken]
    except sealed.UnreadableError as error:
        return [error.message]


def _write(path: Path, content: bytes) -> Signature:
    """Write a cache; a folder that lies in its place is moved aside."""
    try:
        return atomic.replace(path, content)
    except IsADirectoryError:
        _move_aside(path)
        return atomic.replace(path, content)


def _move_aside(path: Path) -> None:
    path.rename(path.with_name(f".damaged.{path.name}.{secrets.token_hex(4)}"))


def _settled(layout: Layout, loaded: Loaded, files: list[File], links: _Links, signature: Signature) -> bool:
    """Whether what was written is still there and nothing came after it."""
    state = loaded.state
    if exists(layout.event(state.image, state.events + 1)):
        return False
    there: set[str] = set()
    known = {file.stem for file in files} | loaded.skipped
    if records_in(layout.image(state.image), there) - known:
        return False
    unchanged = signature == signature_of(layout.index(state.image))
    return unchanged and not links.wrong(layout.image(state.image), there)


def _sums(files: list[File]) -> str:
    """SHA256SUMS for `sha256sum -c`, one line a symlink of a version."""
    return "".join(
        f"{file.sha256}  {file.stem}{LINK_SUFFIX}\n"
        for file in sorted(files, key=lambda one: one.stem)
        if file.published
    )


@dataclass(frozen=True, slots=True)
class _Links:
    """The symlinks of one image: name -> target of those that should be there, and all names that are
    ours.
    """

    versions: dict[str, str]
    channels: dict[str, str]
    ours: tuple[set[str], set[str]]
    """Names that channels and that versions have or had, in the order in which they are removed."""

    @classmethod
    def of(cls, state: ImageState, files: list[File]) -> _Links:
        versions = {file.stem + LINK_SUFFIX: f"../{file.file}" for file in files if file.published}
        channels: dict[str, str] = {}
        for channel in state.channels:
            version = state.current(channel) or ""
            for platform in state.releases[version].platforms if version in state.releases else ():
                target = stem(version, platform) + LINK_SUFFIX
                if target in versions:
                    channels[stem(channel, platform) + LINK_SUFFIX] = target
        platforms = {file.platform for file in files}
        of_channels = {
            stem(name, platform) + LINK_SUFFIX for name in state.channels for platform in platforms
        }
        return cls(versions, channels, (of_channels, {file.stem + LINK_SUFFIX for file in files}))

    def wrong(self, folder: Path, there: set[str], *, every: bool = False) -> list[tuple[str, str]]:
        """(name, target) of links to make, then (name, "") of those to remove.

        A version's link never changes: one that is there is read only when `every` link is wanted.
        """
        wrong = [(name, self.versions[name]) for name in self.versions.keys() - there]
        if every:
            present = self.versions.keys() & there
            wrong += [
                (name, self.versions[name])
                for name in present
                if _target(folder / name) != self.versions[name]
            ]
        for name, target in self.channels.items():
            if name not in there or _target(folder / name) != target:
                wrong.append((name, target))
        for ours in self.ours:  # a channel's link goes before the one that it leads to
            unwanted = (ours & there) - self.versions.keys() - self.channels.keys()
            wrong += [(name, "") for name in sorted(unwanted)]
        return wrong

    def repair(self, folder: Path, there: set[str], *, every: bool) -> None:
        for name, target in self.wrong(folder, there, every=every):
            path = folder / name
            if exists(path) and not path.is_symlink():
                _move_aside(path)  # not ours: whatever it is, it is not deleted
            if target:
                atomic.replace_link(path, target)
            else:
                path.unlink(missing_ok=True)


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


def refresh_manifest(layout: Layout, *, forget: bool = False) -> None:
    """Write manifest.json from the indexes of all images; their text goes in as it is.

    The manifest gets what each index should say; a wrong index itself is repaired by the next change of its
    image. An image may be missing now, or unreadable, or have fewer events than the present manifest says.
    Then its entry stays as it is, since nothing else may name the bytes. With `forget`, fewer events are
    accepted.
    """
    for _ in range(_ROUNDS):
        images = layout.images()
        signatures = _signature(layout, images)
        present = cache_bytes(layout.manifest)
        known = entries(present)
        parts = []
        for image in sorted({*images, *known}):
            raw = _index_of(layout, image) if image in images else b""
            events, before = known.get(image, (0, b""))
            line = read_first_line(raw, image)
            older = line is None or (line[0] < events and not forget)
            if text := (before if older else raw).decode().strip():
                parts.append(f"{json.dumps(image)}: {text}")
        body = ",\n".join(parts)
        content = sealed.seal(f'{{"schema": {SCHEMA}, "images": {{\n{body}\n}}}}')
        if content != present:
            _write(layout.manifest, content)
        if _signature(layout, layout.images()) == signatures:
            return


def _index_of(layout: Layout, image: str) -> bytes:
    try:
        raw = cache_bytes(layout.index(image))
        if index_is_current(layout, image, raw):
            return raw
        state = load(layout, image).state
    except (OSError, sealed.UnreadableError):
        return b""
    return write_index(state) if state.releases else b""


def _signature(layout: Layout, images: Iterable[str]) -> list[tuple[str, Signature]]:
    return [(image, signature_of(layout.index(image))) for image in images]
