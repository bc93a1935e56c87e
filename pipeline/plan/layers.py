"""Where a conversion would take layers from, for the plan; no .sqsh file is opened."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.attest.required import required_of, store_of
from pipeline.config.types import Config, ImageSpec, StoreSettings
from pipeline.convert.convert import choose_converter
from pipeline.convert.from_bucket import BucketReleases
from pipeline.convert.from_store import StoredLayers
from pipeline.convert.packing import codec_of, pack_cache
from pipeline.errors import SqshpipeError
from pipeline.oci.digest import Digest
from pipeline.oci.reference import Reference
from pipeline.registry.client import RegistryClient
from pipeline.registry.images import image_manifest
from pipeline.registry.source import RegistrySource
from pipeline.squashfs.cache import pack_key
from pipeline.store.store import Store
from pipeline.text import human_bytes

if TYPE_CHECKING:
    from typing_extensions import Self

ClientFor = Callable[[str], RegistryClient]


class LayerSources:
    """The layer packs in the cache and those that releases have. For several threads at once."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._cache = pack_cache(config.cache)
        self._opened: dict[str, StoredLayers] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stored in self._opened.values():
            stored.close()

    def notes(
        self, spec: ImageSpec, image: Reference, digest: Digest, client_for: ClientFor, what: str
    ) -> tuple[str, ...]:
        """How many bytes of the layers of `image` come from where; `what` says whose layers they are.

        Layers count as they are stored in the registry. Nothing where another converter would run, or when
        the registry does not answer.
        """
        if choose_converter(spec.convert) != "native":
            return ()
        try:
            client = client_for(image.registry)
            manifest = image_manifest(client, image.with_digest(digest), None)
            source = RegistrySource(client, image.repository, manifest)
            diff_ids = [str(one) for one in source.config().diff_ids]
        except SqshpipeError:
            return ()
        codec = codec_of(spec.convert)
        with self._lock:
            places = self._stored()
        found = dict.fromkeys(("the cache", *places, "the registry"), 0)
        missing = []
        for layer, diff_id in zip(source.manifest().layers, diff_ids, strict=True):
            key = pack_key(diff_id, codec, spec.convert.block_size)
            where = "the cache" if self._cache.has(key) else self._where(key)
            found[where] += layer.size
            if where == "the registry":
                missing.append(diff_id)
        parts = [f"{human_bytes(size)} from {where}" for where, size in found.items()]
        with self._lock:
            asked = places.values() if missing else ()
            others = [stored.other_codec(missing, codec.versions()) for stored in asked]
        return (f"layers of {what}: {', '.join(parts)}", *list(filter(None, others))[:1])

    def _where(self, key: str) -> str:
        with self._lock:
            return next((name for name, stored in self._stored().items() if stored.has(key)), "the registry")

    def _stored(self) -> dict[str, StoredLayers]:
        """The releases of the store and of its copy in S3, by what the plan calls them."""
        if not self._opened:
            config, settings = self._config, self._config.store
            store = store_of(settings, config.path)
            self._opened = {"the store": StoredLayers(store, synced=settings.trust_synced)}
            if settings.s3 is not None:
                copy = stored_layers(None, settings, source=config.path, scratch=config.scratch)
                self._opened[settings.s3] = copy
        return self._opened


def stored_layers(
    store: Store | None, settings: StoreSettings, *, source: Path, scratch: Path
) -> StoredLayers:
    """The layers that releases of `store` have, and those of its copy in S3 where images.yaml names one.

    Downloads go to a folder in `scratch`. Raises as `store_of` does.
    """
    copy = None
    if settings.s3 is not None:
        required = required_of(settings, source) if store is None else store.required
        copy = BucketReleases(settings.s3, scratch=scratch, required=required)
    return StoredLayers(store, synced=settings.trust_synced, copy=copy)
