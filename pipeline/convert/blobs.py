"""Layers of a registry's image on a local disk: fetched once, checked, named by their digest, trimmed."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import ToolError
from pipeline.oci.config import ImageConfig
from pipeline.oci.manifest import Descriptor, Manifest
from pipeline.progress import Task
from pipeline.registry.source import RegistrySource
from pipeline.system import untrusted
from pipeline.system.log import log

CACHE_LIMIT = 100 << 30  # bytes of blobs that stay for the next conversion
_PARTIAL_AGE = 7 * 86400.0  # seconds after which nobody will resume a download
_BLOB = re.compile(r"[0-9a-f]{64,128}")
_FINISHED = re.compile(r"[0-9a-f]{64,128}(\.[a-z0-9_]+)?")


class CachedSource:
    """An `ImageSource`: a registry's image whose layers are read from files in ``cache``."""

    def __init__(self, source: RegistrySource, cache: Path) -> None:
        self.name = source.name
        self.folder = cache / "blobs"
        self._source = source

    def manifest(self) -> Manifest:
        return self._source.manifest()

    def config(self) -> ImageConfig:
        return self._source.config()

    def missing(self) -> tuple[Descriptor, ...]:
        """The layers that are not there yet, each once."""
        layers = {layer.digest: layer for layer in self.manifest().layers}
        return tuple(layer for layer in layers.values() if not self._path(layer).exists())

    def fetch(self, task: Task) -> None:
        """Bring all layers into the cache, several at once; those that are there are checked again.

        Raises RegistryError, or ToolError when the disk is full.
        """
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with untrusted.folder_to_write(self.folder, make=0o700):
                pass  # it is there, and no other user's symlink leads to it
            writable = untrusted.others_may_write(self.folder)
        except OSError as error:
            raise ToolError(
                f"cannot make the cache folder {self.folder}: {error.strerror}",
                hint="set SQSHPIPE_CACHE to a folder that you can write",
            ) from error
        if writable:
            raise ToolError(
                f"everybody can put layers into {self.folder}, or change them after they were checked",
                hint="set SQSHPIPE_CACHE to a folder of yours, or take it from others: chmod o-w, chown",
            )
        layers = self.manifest().layers
        self._source.client.fetch_blobs(self._source.repository, layers, self.folder, task)
        for layer in layers:
            with contextlib.suppress(OSError):
                os.utime(self._path(layer))  # used now: trimmed last

    def open_layer(self, index: int) -> AbstractContextManager[BinaryIO]:
        """From the cache; from the registry when another run has trimmed it meanwhile."""
        with contextlib.suppress(FileNotFoundError):
            return os.fdopen(untrusted.open_regular(self._path(self.manifest().layers[index])), "rb")
        return self._source.open_layer(index)

    def _path(self, layer: Descriptor) -> Path:
        return self.folder / layer.digest.hex


def trim(folder: Path, *, limit: int = CACHE_LIMIT) -> int:
    """Remove the blobs that were not used for the longest time until at most ``limit`` bytes are left.

    Downloads that nobody resumed for a week are removed too. Gives back how many bytes were freed.
    """
    freed = total = 0
    for file, size, used in sorted(_files(folder), key=lambda found: -found[2]):
        total += size
        old = not _BLOB.fullmatch(file.name) and time.time() - used > _PARTIAL_AGE
        if old or (_BLOB.fullmatch(file.name) and total > limit):
            with contextlib.suppress(OSError):
                file.unlink()
                freed += size
    if freed:
        log.debug("trimmed the cache of layers", folder=str(folder), freed=freed)
    return freed


def _files(folder: Path) -> Iterator[tuple[Path, int, float]]:
    with contextlib.suppress(OSError):
        for file in folder.iterdir():
            with contextlib.suppress(OSError):
                found = file.lstat()
                if _FINISHED.fullmatch(file.name):
                    yield file, found.st_size, found.st_mtime
