"""Small made-up releases for tests of the store."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

from pipeline.store.record import Record, Release
from pipeline.store.store import Store


def record_for(
    content: bytes,
    version: str,
    *,
    image: str = "demo",
    platform: str = "linux/amd64",
    created: str = "",
    external: bool = False,
) -> Record:
    """The record of a release with that content; versions with higher last digits are newer by default."""
    return Record(
        image=image,
        version=version,
        platform=platform,
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        source=None if external else {"digest": "sha256:" + "a" * 64},
        scan={"status": "external" if external else "unscanned", "scanner": "none"},
        created=created or f"2026-01-01T00:00:{version.rpartition('.')[2]:0>2}Z",
    )


def publish(
    store: Store, version: str, content: bytes = b"", *, allow_external: bool = False, **details: Any
) -> Release:
    """Publish `content` (by default, the version's own name) from a file outside the store, which is created
    when it is not there.
    """
    content = content or version.encode()
    store.create()
    with tempfile.TemporaryDirectory() as elsewhere:
        source = Path(elsewhere) / "source"
        source.write_bytes(content)
        return store.publish(record_for(content, version, **details), source, allow_external=allow_external)


def new_store(root: Path, **settings: Any) -> Store:
    """A store at `root`, created when it is not there."""
    store = Store(root, **settings)
    store.create()
    return store


def caches(store: Store) -> dict[str, bytes]:
    """Every cache file of a store with its bytes."""
    paths = [store.layout.manifest]
    for image in store.layout.images():
        paths += [store.layout.index(image), store.layout.head(image), store.layout.sums(image)]
    return {str(path.relative_to(store.root)): path.read_bytes() for path in paths if path.exists()}


def folder(path: Path) -> list[str]:
    """Names in a folder, sorted."""
    return sorted(entry.name for entry in path.iterdir())
