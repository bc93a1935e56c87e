"""An image in a registry as something to read from (``docker://``)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import BinaryIO

from pipeline.oci.config import ImageConfig
from pipeline.oci.manifest import Manifest
from pipeline.oci.source import check_layer_count
from pipeline.registry.client import RegistryClient


class RegistrySource:
    """An `ImageSource`: one platform's image in a registry, by its manifest."""

    def __init__(self, client: RegistryClient, repository: str, manifest: Manifest) -> None:
        self.name = f"docker://{client.host}/{repository}@{manifest.digest}"
        self._client = client
        self._repository = repository
        self._manifest = manifest
        self._config: ImageConfig | None = None

    def __repr__(self) -> str:
        return f"RegistrySource({self.name!r})"

    @property
    def client(self) -> RegistryClient:
        """Where the blobs are, for those who fetch several at once (`RegistryClient.fetch_blobs`)."""
        return self._client

    @property
    def repository(self) -> str:
        return self._repository

    def manifest(self) -> Manifest:
        return self._manifest

    def config(self) -> ImageConfig:
        if self._config is None:
            config = self._client.get_config(self._repository, self._manifest)
            check_layer_count(self._manifest, config, self.name)
            self._config = config
        return self._config

    def open_layer(self, index: int) -> AbstractContextManager[BinaryIO]:
        """Layer ``index`` (0 is the lowest) as stored. RegistryError at its end if the digest is wrong."""
        return self._client.open_blob(self._repository, self._manifest.layers[index])
