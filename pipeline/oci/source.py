"""Where an image is read from: the one interface of OCI layouts, docker archives, registries and daemons."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import BinaryIO, Protocol

from pipeline.errors import FormatError
from pipeline.oci.config import ImageConfig
from pipeline.oci.manifest import Manifest


class ImageSource(Protocol):
    """One image for one platform. Methods may be called from several threads at once."""

    @property
    def name(self) -> str:
        """What people call it: `oci:DIR:tag`, `docker://host/repo@sha256:…`. Used in errors."""

    def manifest(self) -> Manifest:
        """The image's manifest, its digest checked. Cheap after the first call."""

    def config(self) -> ImageConfig:
        """The image's config, checked: its digest, and its number of layers. Cached after the first call."""

    def open_layer(self, index: int) -> AbstractContextManager[BinaryIO]:
        """Layer `index` (0 is the lowest) as it is stored, maybe compressed.

        The read that reaches the end checks the blob's digest. It raises FormatError for another digest
        (RegistryError from a registry). Several layers may be open at the same time.
        """


def check_layer_count(manifest: Manifest, config: ImageConfig, name: str) -> None:
    """Raise FormatError unless `config` has one diff_id for each layer of `manifest`."""
    if len(manifest.layers) != len(config.diff_ids):
        raise FormatError(
            f"{name} has {len(manifest.layers)} layers in its manifest"
            f" but {len(config.diff_ids)} in its config"
        )
