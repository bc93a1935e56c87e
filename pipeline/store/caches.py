"""What can be computed from records and events, kept ready: index.json, head.json, SHA256SUMS, symlinks,
manifest.json.

Anyone may rewrite a cache at any time, from what is true at that moment. Since two may do so at once and the
slower one may know less, whoever has written looks again and repeats until nothing changed meanwhile; so the
last one to write always leaves the truth. Readers notice a stale or missing cache by the number of the next
event, and go to the records.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from pipeline.store import atomic
from pipeline.store.layout import LINK_SUFFIX, Layout
from pipeline.store.names import stem
from pipeline.store.reading import Loaded, Signature, exists, load, records_in, signature_of
from pipeline.store.state import ImageState, write_head, write_index

MANIFEST_SCHEMA = 1
_ROUNDS = 200


def refresh(layout: Layout, image: str) -> ImageState:
    """Bring the caches of `image` up to date and give the state that they now hold."""
    loaded = load(layout, image)
    if loaded.broken:
        import structlog

        for message in loaded.broken:
            structlog.get_logger().warning("left out a record that cannot be read", reason=message)
    for _ in range(_ROUNDS):
        text = write_index(loaded.state)
        signature = loaded.signature
        _refresh_links(layout, loaded)
        if text != loaded.index:
            atomic.replace(layout.sums(image), _sums(loaded.state).encode())
            signature = atomic.replace(layout.index(image), text.encode())
        if (head := write_head(loaded.state).encode()) != _present(layout.head(image)):
            atomic.replace(layout.head(image), head)
        if _settled(layout, loaded, signature):
            return loaded.state
        loaded = load(layout, image)
    return loaded.state  # others keep changing it, and each of them does the same after its change


def rebuild(layout: Layout) -> list[str]:
    """Write the caches of all images anew, the present ones not trusted; gives what could not be read."""
    broken: list[str] = []
    for image in layout.images():
        loaded = load(layout, image, rebuild=True)
        broken += loaded.broken
        if loaded.state.releases or loaded.broken:
            for cache in (layout.index(image), layout.head(image)):
                cache.unlink(missing_ok=True)
            refresh(layout, image)
    refresh_manifest(layout)
    return broken


def _settled(layout: Layout, loaded: Loaded, signature: Signature) -> bool:
    """Whether what was written is still there and nothing came after it."""
    state = loaded.state
    if exists(layout.event(state.image, state.events + 1)):
        return False
    loaded.links.clear()
    known = {name for name, _, _, _ in state.stems()} | state.channels.keys()
    if len(records_in(layout.image(state.image), loaded.links) - known) > len(loaded.broken):
        return False
    try:
        return signature_of(layout.index(state.image)) == signature and not _wrong_links(layout, loaded)
    except FileNotFoundError:
        return False


def _present(path: Path) -> bytes:
    try:
        return atomic.read_bytes(path)
    except FileNotFoundError:
        return b""


def _sums(state: ImageState) -> str:
    """SHA256SUMS for `sha256sum -c`, one line a symlink of a version."""
    lines = [
        f"{held.sha256}  {name}{LINK_SUFFIX}\n"
        for name, version, platform, held in state.stems()
        if state.releases[version].state(platform) == "published"
    ]
    return "".join(sorted(lines, key=lambda line: line[66:]))


def _wanted_links(state: ImageState) -> dict[str, tuple[str, bool]]:
    """name -> (target, whether the target can change) of every symlink that should be there."""
    links: dict[str, tuple[str, bool]] = {}
    for name, version, platform, held in state.stems():
        if state.releases[version].state(platform) == "published":
            links[name + LINK_SUFFIX] = (f"../{held.file}", False)
    for channel in state.channels:
        version = state.current(channel) or ""
        for platform in state.releases[version].platforms if version in state.releases else ():
            target = stem(version, platform) + LINK_SUFFIX
            if target in links:
                links[stem(channel, platform) + LINK_SUFFIX] = (target, True)
    return links


def _wrong_links(layout: Layout, loaded: Loaded) -> list[tuple[str, str]]:
    """(name, target) of symlinks to make, and (name, "") of those to remove."""
    wanted = _wanted_links(loaded.state)
    folder = layout.image(loaded.state.image)
    wrong = []
    for name, (target, changes) in wanted.items():
        if name not in loaded.links or (changes and _target(folder / name) != target):
            wrong.append((name, target))
    platforms = {platform for one in loaded.state.releases.values() for platform in one.platforms}
    channels = {
        stem(name, platform) + LINK_SUFFIX for name in loaded.state.channels for platform in platforms
    }
    versions = {name + LINK_SUFFIX for name, _, _, _ in loaded.state.stems()}
    for ours in (channels, versions):  # a channel's link goes before the one that it leads to
        wrong += [(name, "") for name in loaded.links if name in ours and name not in wanted]
    return wrong


def _refresh_links(layout: Layout, loaded: Loaded) -> None:
    folder = layout.image(loaded.state.image)
    for name, target in _wrong_links(layout, loaded):
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
        text = f'{{"schema": {MANIFEST_SCHEMA}, "images": {{\n{body}\n}}}}\n'
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
