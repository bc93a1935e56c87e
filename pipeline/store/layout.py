"""Where things lie under the root of a store.

blobs/sha256/<hex>.sqsh            the bytes
<image>/<version>.json             the record: the commit
<image>/<version>.sqsh             symlink to the bytes
<image>/<channel>.sqsh             symlink to a version
<image>/index.json, SHA256SUMS     caches
<image>/.meta/events/<number>.json what was done since, one file each
<image>/.meta/head.json            cache: channels, and what does not resolve
<image>/.meta/<version>/           signatures, SBOM, findings, ranges, layers, start-up profiles
manifest.json                      cache of everything
leases/                            who uses what
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.names import is_image, stem

RECORD_SUFFIX = ".json"
LINK_SUFFIX = ".sqsh"
INDEX = "index.json"
SUMS = "SHA256SUMS"
SBOM = "sbom.cdx.json"
SIGNATURE = "signature.json"
RANGES = "ranges.json"
LAYERS = "layers.bin"
BROUGHT = "brought.json"
"""Beside a release that `sync` brought: another store's writers vouch for what its record says of layers."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths of a store; knows names only and touches no disk, except to list images."""

    root: Path

    @property
    def blobs(self) -> Path:
        return self.root / "blobs" / "sha256"

    @property
    def leases(self) -> Path:
        return self.root / "leases"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    @property
    def meta(self) -> Path:
        """The folder for files of the whole store, such as the progress of a scrub."""
        return self.root / ".meta"

    def blob(self, sha256: str) -> Path:
        return self.blobs / f"{sha256}{LINK_SUFFIX}"

    def image(self, image: str) -> Path:
        return self.root / image

    def record(self, image: str, version: str, platform: str) -> Path:
        return self.root / image / (stem(version, platform) + RECORD_SUFFIX)

    def link(self, image: str, name: str, platform: str) -> Path:
        """The path for people, of a version or a channel."""
        return self.root / image / (stem(name, platform) + LINK_SUFFIX)

    def index(self, image: str) -> Path:
        return self.root / image / INDEX

    def sums(self, image: str) -> Path:
        return self.root / image / SUMS

    def head(self, image: str) -> Path:
        return self.root / image / ".meta" / "head.json"

    def events(self, image: str) -> Path:
        return self.root / image / ".meta" / "events"

    def event(self, image: str, number: int) -> Path:
        return Path(self.event_name(image, number))

    def event_name(self, image: str, number: int) -> str:
        """The path of an event as text: an image has thousands, and a Path takes long to make."""
        return f"{self.root}/{image}/.meta/events/{number:08d}.json"

    def attachments(self, image: str, version: str, platform: str) -> Path:
        return self.root / image / ".meta" / stem(version, platform)

    def images(self) -> list[str]:
        """Names of the images that have a folder, sorted. No store at all is an empty list."""
        return sorted(name for name, is_folder in self._named() if is_folder)

    def not_folders(self) -> list[str]:
        """Names that an image could have, of what is neither a folder nor a file."""
        return sorted(name for name, is_folder in self._named() if is_folder is None)

    def _named(self) -> list[tuple[str, bool | None]]:
        """(name, whether it is a folder) of what is in the root; None for a pipe or a link to nowhere."""
        try:
            with os.scandir(self.root) as entries:
                return [(entry.name, _is_folder(entry)) for entry in entries if is_image(entry.name)]
        except (FileNotFoundError, NotADirectoryError):
            return []


def _is_folder(entry: os.DirEntry[str]) -> bool | None:
    try:
        return True if entry.is_dir() else False if entry.is_file() else None
    except OSError:
        return None
