"""What releases cost on disk. Bytes that several share are counted once in a total."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pipeline.store.layout import Layout
from pipeline.store.reading import load
from pipeline.store.sealed import UnreadableError


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Bytes of one version: `size` is all that it has, `own` what its deletion alone would free."""

    image: str
    version: str
    state: str
    size: int
    own: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Costs by version, totals by image and of everything, each file counted once in each of them."""

    costs: tuple[Cost, ...]
    images: dict[str, int]
    total: int
    broken: tuple[str, ...] = ()
    """Files that cannot be read, one sentence each; their images are left out."""


def usage(layout: Layout) -> Usage:
    """The size on disk, in bytes, of every version that still has its file."""
    rows: list[tuple[str, str, str, dict[str, int]]] = []
    broken = []
    for image in layout.images():
        try:
            state = load(layout, image).state
        except UnreadableError as error:
            broken.append(error.message)
            continue
        for version, standing in state.newest_first():
            files = {held.sha256: held.size for held in standing.platforms.values()}
            if files and not standing.pruned:
                rows.append((image, version, standing.state(), files))
    holders = Counter(digest for _, _, _, files in rows for digest in files)
    costs = tuple(
        Cost(
            image=image,
            version=version,
            state=state_word,
            size=sum(files.values()),
            own=sum(size for digest, size in files.items() if holders[digest] == 1),
        )
        for image, version, state_word, files in rows
    )
    by_image: dict[str, dict[str, int]] = {}
    everything: dict[str, int] = {}
    for image, _, _, files in rows:
        by_image.setdefault(image, {}).update(files)
        everything.update(files)
    totals = {image: sum(files.values()) for image, files in by_image.items()}
    return Usage(costs=costs, images=totals, total=sum(everything.values()), broken=tuple(broken))
