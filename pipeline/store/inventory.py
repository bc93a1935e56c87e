"""The state of the whole store, read from records and events, for the code that deletes, hides or marks.

Caches are used for one thing only: the bytes that they name are not deleted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.config.names import stem
from pipeline.store import index, sealed
from pipeline.store.layout import LINK_SUFFIX, Layout
from pipeline.store.reading import cache_bytes, lost_events, lost_image, read_truth, records_in
from pipeline.store.record import is_sha256
from pipeline.store.state import ImageState
from pipeline.text import escaped

_HEX = re.compile(rb"[0-9a-f]{64}")
_SUM = re.compile(rb"([0-9a-f]{64})  (.+)\.sqsh")


@dataclass(slots=True)
class Inventory:
    """The state of every image, and what could not be read."""

    states: dict[str, ImageState] = field(default_factory=dict)
    """By image; one whose events cannot be read is not among them."""
    faults: dict[str, list[str]] = field(default_factory=dict)
    """By image: records and events that cannot be read, one sentence each."""

    @property
    def broken(self) -> list[str]:
        """All sentences of `faults`."""
        return [sentence for sentences in self.faults.values() for sentence in sentences]

    def needed(self) -> tuple[set[str], set[str]]:
        """(digests that a release still has, digests that only pruned releases had)."""
        alive: set[str] = set()
        pruned: set[str] = set()
        for state in self.states.values():
            for _, version, _, held in state.stems():
                (pruned if state.releases[version].pruned else alive).add(held.sha256)
        return alive, pruned - alive


def take(layout: Layout) -> Inventory:
    """Read all records and events. What cannot be read of one image does not affect the others."""
    found = Inventory()
    for name in layout.not_folders():
        found.faults[name] = [f"{escaped(str(layout.image(name)))} is neither a folder nor a file"]
    listed = index.entries(_bytes(layout, layout.manifest.name))
    for image in layout.images():
        try:
            loaded = read_truth(layout, image)
        except sealed.UnreadableError as error:
            found.faults[image] = [error.message]
            continue
        found.states[image] = loaded.state
        events = listed.get(image, (0, b""))[0]
        faults = [*loaded.broken, *filter(None, [lost_events(layout, loaded.state, listed=events)])]
        if faults:
            found.faults[image] = faults
    for image in listed.keys() - found.states.keys() - found.faults.keys():
        found.faults[image] = [lost_image(layout, image)]
    return found


def named_by_caches(layout: Layout, inventory: Inventory) -> dict[str, str]:
    """sha256 -> the symlink or cache that names it for a release without a record."""
    known = {(image, name) for image, state in inventory.states.items() for name, _, _, _ in state.stems()}
    _, pruned = inventory.needed()
    named: dict[str, str] = {}
    for where, image, name, digest in _names(layout):
        lost = (image, name) not in known if name else digest not in pruned
        if lost:
            named.setdefault(digest, f"{escaped(where)} names it, and there is no record that does")
    return named


def _names(layout: Layout) -> Iterator[tuple[str, str, str, str]]:
    """(file, image, stem of the record, sha256) as links and caches say; stem is empty if unknown."""
    for image in layout.images():
        links: set[str] = set()
        records_in(layout.image(image), links)
        folder = layout.image(image)
        for link in sorted(links):
            try:
                target = os.readlink(f"{folder}/{link}")  # noqa: PTH115 - thousands of them
            except OSError:
                continue
            target = target.rpartition("/")[2].removesuffix(LINK_SUFFIX)
            if is_sha256(target):
                yield f"{image}/{link}", image, link.removesuffix(LINK_SUFFIX), target
        for line in _bytes(layout, f"{image}/{layout.sums(image).name}").splitlines():
            if match := _SUM.fullmatch(line):
                yield f"{image}/SHA256SUMS", image, match[2].decode(errors="replace"), match[1].decode()
            else:
                yield from _all(f"{image}/SHA256SUMS", line)
        raw = _bytes(layout, f"{image}/{layout.index(image).name}")
        data = sealed.parse_cache(raw)
        yield from (
            _all(f"{image}/index.json", raw) if data is None else _index(f"{image}/index.json", image, data)
        )
    raw = _bytes(layout, layout.manifest.name)
    data = sealed.parse_cache(raw)
    if data is None or not isinstance(data.get("images"), dict):
        yield from _all("manifest.json", raw)
        return
    for image, entry in data["images"].items():
        yield from _index("manifest.json", image, entry)


def _index(where: str, image: str, data: Any) -> Iterator[tuple[str, str, str, str]]:
    try:
        for version, entry in data["releases"].items():
            for platform, held in {**entry["platforms"], **(entry.get("damaged") or {})}.items():
                if held:
                    yield where, image, stem(version, platform), str(held["sha256"])
    except (KeyError, TypeError, AttributeError):
        return


def _all(where: str, raw: bytes) -> Iterator[tuple[str, str, str, str]]:
    for digest in set(_HEX.findall(raw)):
        yield where, "", "", digest.decode()


def _bytes(layout: Layout, name: str) -> bytes:
    try:
        return cache_bytes(layout.root / name)
    except sealed.UnreadableError:
        return sealed.read_bytes(layout.root / name, limit=sealed.LARGE)  # of a newer schema
