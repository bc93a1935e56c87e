"""Where a conversion would take layers from, for the plan; no .sqsh file is opened."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.config.types import Config, ImageSpec
from pipeline.convert.convert import choose_converter
from pipeline.convert.from_store import StoredLayers
from pipeline.convert.packing import codec_of, pack_cache
from pipeline.errors import SqshpipeError
from pipeline.oci.digest import Digest
from pipeline.oci.reference import Reference
from pipeline.plan.known import KnownReleases
from pipeline.registry.client import RegistryClient
from pipeline.registry.images import image_manifest
from pipeline.registry.source import RegistrySource
from pipeline.squashfs.cache import pack_key
from pipeline.text import human_bytes

if TYPE_CHECKING:
    from typing_extensions import Self

ClientFor = Callable[[str], RegistryClient]


class LayerSources:
    """The layer packs in the cache and those that releases have. For several threads at once."""

    def __init__(self, config: Config, known: KnownReleases) -> None:
        self._known = known
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
            store, copy, synced = self._known.store, self._known.copy, self._known.synced
            if store is not None:
                self._opened["the store"] = StoredLayers(store, synced=synced)
            if copy is not None:
                self._opened[copy.url] = StoredLayers(None, synced=synced, copy=copy)
        return self._opened
