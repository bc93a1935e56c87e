"""What can be computed from records and events, kept ready: index.json, head.json, SHA256SUMS, symlinks,
manifest.json.

Anyone may rewrite a cache at any time, from what is true at that moment. Since two may do so at once and the
slower one may know less, whoever has written looks again and repeats until nothing changed meanwhile; so the
last one to write always leaves the truth. Readers notice a stale or missing cache by the number of the next
event, and go to the records.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PublishError
from pipeline.store import atomic
from pipeline.store.index import write_head, write_index
from pipeline.store.layout import LINK_SUFFIX, Layout
from pipeline.store.names import stem
from pipeline.store.reading import Loaded, Signature, exists, load, records_in, signature_of
from pipeline.store.state import File, ImageState

SCHEMA = 1
"""Of index, head and manifest."""
_ROUNDS = 200
_SCHEMA = re.compile(rb'\s*\{\s*"schema"\s*:\s*([0-9]+)')


def refresh(layout: Layout, image: str, loaded: Loaded | None = None) -> ImageState:
    """Bring the caches of `image` up to date and give the state that they now hold.

    `loaded` is what was read a moment ago, if it was; what came since is found either way.
    """
    loaded = loaded or load(layout, image)
    if loaded.broken:
        import structlog

        for message in loaded.broken:
            structlog.get_logger().warning("left out a record that cannot be read", reason=message)
    for _ in range(_ROUNDS):
        files = list(loaded.state.files())
        links = _Links.of(loaded.state, files)
        text = write_index(loaded.state)
        signature = loaded.signature
        links.mend(layout.image(image), loaded.links)
        if text != loaded.index:
            atomic.replace(layout.sums(image), _sums(files).encode())
            signature = atomic.replace(layout.index(image), text.encode())
        if (head := write_head(loaded.state).encode()) != _present(layout.head(image)):
            atomic.replace(layout.head(image), head)
        if _settled(layout, loaded, files, links, signature):
            return loaded.state
        loaded = load(layout, image)
    return loaded.state  # others keep changing it, and each of them does the same after its change


def rebuild(layout: Layout) -> list[str]:
    """Write the caches of all images anew, the present ones not trusted; gives what could not be read.

    Raises PublishError when a newer sqshpipe wrote one of them: it knows more than this one can write.
    """
    broken: list[str] = []
    images = layout.images()
    for path in [layout.manifest, *map(layout.index, images), *map(layout.head, images)]:
        _present(path)
    for image in images:
        loaded = load(layout, image, rebuild=True)
        broken += loaded.broken
        if loaded.state.releases or loaded.broken:
            for cache in (layout.index(image), layout.head(image)):
                cache.unlink(missing_ok=True)
            refresh(layout, image)
    refresh_manifest(layout)
    return broken


def _settled(layout: Layout, loaded: Loaded, files: list[File], links: _Links, signature: Signature) -> bool:
    """Whether what was written is still there and nothing came after it."""
    state = loaded.state
    if exists(layout.event(state.image, state.events + 1)):
        return False
    there: set[str] = set()
    known = {file.stem for file in files} | state.channels.keys()
    if len(records_in(layout.image(state.image), there) - known) > len(loaded.broken):
        return False
    try:
        unchanged = signature_of(layout.index(state.image)) == signature
    except FileNotFoundError:
        return False
    return unchanged and not links.wrong(layout.image(state.image), there)


def _present(path: Path) -> bytes:
    """What a cache holds before it is written. Raises PublishError for one of a newer schema."""
    try:
        raw = atomic.read_bytes(path)
    except FileNotFoundError:
        return b""
    told = _SCHEMA.match(raw)
    if told and int(told[1]) > SCHEMA:
        raise PublishError(
            f"{path} has schema {told[1].decode()}; this sqshpipe knows up to {SCHEMA}",
            hint="a newer sqshpipe writes this store: upgrade this one",
        )
    return raw


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

    def wrong(self, folder: Path, there: set[str]) -> list[tuple[str, str]]:
        """(name, target) of links to make, then (name, "") of those to remove; a version's never changes."""
        wrong = [(name, self.versions[name]) for name in self.versions.keys() - there]
        for name, target in self.channels.items():
            if name not in there or _target(folder / name) != target:
                wrong.append((name, target))
        for ours in self.ours:  # a channel's link goes before the one that it leads to
            unwanted = (ours & there) - self.versions.keys() - self.channels.keys()
            wrong += [(name, "") for name in sorted(unwanted)]
        return wrong

    def mend(self, folder: Path, there: set[str]) -> None:
        for name, target in self.wrong(folder, there):
            if target:
                atomic.replace_link(folder / name, target)
            else:
                (folder / name).unlink(missing_ok=True)


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


def refresh_manifest(layout: Layout) -> None:
    """Write manifest.json from the indexes of all images; their text goes in as it is."""
    for _ in range(_ROUNDS):
        images = layout.images()
        before = _signature(layout, images)
        parts = []
        for image in images:
            text = _present(layout.index(image)).decode().strip()
            if text:
                parts.append(f"{json.dumps(image)}: {text}")
        body = ",\n".join(parts)
        text = f'{{"schema": {SCHEMA}, "images": {{\n{body}\n}}}}\n'
        if text.encode() != _present(layout.manifest):
            atomic.replace(layout.manifest, text.encode())
        if _signature(layout, layout.images()) == before:
            return


def _signature(layout: Layout, images: Iterable[str]) -> list[tuple[str, int, int]]:
    signature = []
    for image in images:
        try:
            status = layout.index(image).stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        signature.append((image, status.st_ino, status.st_mtime_ns))
    return signature
