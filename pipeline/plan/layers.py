"""Where a conversion would take layers from, for the plan; no .sqsh file is opened."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pipeline.attest.required import store_of
from pipeline.config.types import Config, ImageSpec
from pipeline.convert.convert import choose_converter
from pipeline.convert.from_store import StoredLayers
from pipeline.convert.packing import codec_of, pack_cache
from pipeline.errors import SqshpipeError
from pipeline.oci.digest import Digest
from pipeline.oci.reference import Reference
from pipeline.registry.client import RegistryClient
from pipeline.registry.images import image_manifest
from pipeline.registry.source import RegistrySource
from pipeline.squashfs.cache import pack_key
from pipeline.text import human_bytes

ClientFor = Callable[[str], RegistryClient]


class LayerSources:
    """The layer packs in the cache and those that releases have. For several threads at once."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._cache = pack_cache(config.cache)
        self._opened: StoredLayers | None = None

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
        found = {"the cache": 0, "the store": 0, "the registry": 0}
        missing = []
        for layer, diff_id in zip(source.manifest().layers, diff_ids, strict=True):
            key = pack_key(diff_id, codec, spec.convert.block_size)
            where = "the cache" if self._cache.has(key) else "the store" if self._has(key) else "the registry"
            found[where] += layer.size
            if where == "the registry":
                missing.append(diff_id)
        parts = [f"{human_bytes(size)} from {where}" for where, size in found.items()]
        with self._lock:
            other = self._stored().other_codec(missing, codec.versions())
        return (f"layers of {what}: {', '.join(parts)}", *([other] if other else []))

    def _has(self, key: str) -> bool:
        with self._lock:
            return self._stored().has(key)

    def _stored(self) -> StoredLayers:
        if self._opened is None:
            settings = self._config.store
            store = store_of(settings, self._config.path)
            self._opened = StoredLayers(store, synced=settings.trust_synced)
        return self._opened
