"""The images that records name, opened in their registries."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, RegistryError

if TYPE_CHECKING:
    from pipeline.config.types import Config
    from pipeline.oci.source import ImageSource
    from pipeline.store.record import Record

    OpenImage = Callable[[Record], AbstractContextManager[ImageSource]]


@contextlib.contextmanager
def recorded_images(config: Path, root: Path | None) -> Iterator[tuple[Config | None, OpenImage]]:
    """images.yaml, if there is one, and what opens the image of a record with the credentials it gives."""
    from pipeline.bases.clients import Clients
    from pipeline.config.reading import load
    from pipeline.oci.reference import Reference
    from pipeline.registry.client import RegistryClient
    from pipeline.registry.credentials import credentials_provider
    from pipeline.registry.images import image_manifest
    from pipeline.registry.source import RegistrySource

    settings = load(config, store=root) if config.is_file() else None
    with contextlib.ExitStack() as closing:
        clients = closing.enter_context(Clients(settings)) if settings is not None else None

        def client_for(host: str) -> RegistryClient:
            if clients is not None:
                return clients(host)
            return closing.enter_context(RegistryClient(host, credentials=credentials_provider(None)))

        @contextlib.contextmanager
        def image(record: Record) -> Iterator[ImageSource]:
            source = record.source or {}
            try:
                reference = Reference.parse(f"{source['repository']}@{source['digest']}")
            except (KeyError, ConfigError) as error:
                raise RegistryError("its record does not name its image in a registry") from error
            client = client_for(reference.registry)
            yield RegistrySource(client, reference.repository, image_manifest(client, reference, None))

        yield settings, image
