"""The facts that a plan needs: digests that the tags of bases name, earlier releases, what the registry has.

Only reads: registries by HEAD, records of releases, the build contexts. Images are looked at in parallel;
a base that several share is asked for once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone

from pipeline.config.lock import Lock
from pipeline.config.names import Version
from pipeline.config.types import Config, ImageSpec
from pipeline.errors import RegistryError, SqshpipeError
from pipeline.image import inputs
from pipeline.image.pin import BaseImage, pin
from pipeline.oci.digest import Digest
from pipeline.plan.changes import Observation
from pipeline.plan.current import ReleaseFacts, image_key, is_same_image
from pipeline.plan.known import KnownReleases
from pipeline.plan.layers import LayerSources
from pipeline.registry.client import RegistryClient
from pipeline.store.record import Release
from pipeline.system.parallel_reads import each

_WORKERS = 16

ClientFor = Callable[[str], RegistryClient]
_Pinned = BaseImage | SqshpipeError


def observe(
    config: Config,
    specs: Sequence[ImageSpec],
    lock: Lock,
    client_for: ClientFor,
    known: KnownReleases,
    *,
    version: Version | None = None,
    now: datetime | None = None,
) -> tuple[Observation, ...]:
    """One observation for each image, in the order of ``specs``.

    A base that cannot be pinned becomes that observation's ``base_problem``, a configured registry that
    fails its ``registry_problem``. Raises ConfigError for contexts that cannot be read, PublishError for a
    damaged store.
    """
    if not specs:
        return ()
    moment = now or datetime.now(timezone.utc)
    keys = {(str(spec.base), str(spec.platform)): spec for spec in specs}
    found = each(lambda spec: _pin(spec, lock, client_for), keys.values(), workers=_WORKERS)
    pinned = dict(zip(keys, found, strict=True))
    with LayerSources(config, known) as sources:

        def one(spec: ImageSpec) -> Observation:
            base = pinned[str(spec.base), str(spec.platform)]
            return _observe(config, spec, base, client_for, known, sources, version, moment)

        return tuple(each(one, specs, workers=_WORKERS))


def _pin(spec: ImageSpec, lock: Lock, client_for: ClientFor) -> _Pinned:
    try:
        return pin(spec.base, spec.platform, lock, client_for)
    except SqshpipeError as error:
        return error


def _observe(
    config: Config,
    spec: ImageSpec,
    pinned: _Pinned,
    client_for: ClientFor,
    known: KnownReleases,
    sources: LayerSources,
    version: Version | None,
    now: datetime,
) -> Observation:
    platform = str(spec.platform)
    newest = _facts(known.newest(spec.name, platform))
    taken = _facts(known.release(spec.name, version, platform)) if version else None
    seen = Observation(
        spec=spec,
        version=version,
        newest=newest,
        taken=taken,
        target=known.layout.link(spec.name, version, platform) if version else None,
        scan_policy=inputs.scan_policy(spec.scan),
    )
    if isinstance(pinned, SqshpipeError):
        return replace(seen, base_problem=str(pinned))
    seen = replace(
        seen,
        base=pinned.digest,
        locked=pinned.locked,
        moved_to=pinned.moved_to,
        inputs=None if spec.mirrored else inputs.gather(spec, pinned.digest, now=now),
    )
    reference = taken or newest
    if reference is not None and is_same_image(reference, spec, seen.base, seen.inputs):
        return seen
    seen = replace(seen, base_size=_size(spec, pinned, client_for))
    try:
        seen = replace(seen, pushed=_pushed(config, seen, client_for))
    except RegistryError as error:
        seen = replace(seen, registry_problem=str(error))
    return replace(seen, layers=_layers(config, seen, pinned, client_for, sources))


def _layers(
    config: Config, seen: Observation, base: BaseImage, client_for: ClientFor, sources: LayerSources
) -> tuple[str, ...]:
    """Where a conversion would take its layers from: those of the pushed image, else those of its base."""
    if seen.pushed is None:
        return sources.notes(seen.spec, seen.spec.base, base.digest, client_for, "the base")
    image = config.registry.repository(seen.spec.name)
    return sources.notes(seen.spec, image, seen.pushed, client_for, "the image")


def _facts(release: Release | None) -> ReleaseFacts | None:
    return None if release is None else ReleaseFacts.of(release)


def _pushed(config: Config, seen: Observation, client_for: ClientFor) -> Digest | None:
    """What the registry has of the wanted image already; without a registry nothing is there."""
    if not config.registry.given:
        return None
    repository = config.registry.repository(seen.spec.name)
    key = image_key(seen.spec, seen.base, seen.inputs)
    identifier = str(seen.base) if seen.spec.mirrored else f"key-{key}"
    found = client_for(repository.registry).head(repository.repository, identifier)
    return found.digest if found else None


def _size(spec: ImageSpec, base: BaseImage, client_for: ClientFor) -> int | None:
    """The base's compressed bytes: a guess of what a first release writes. None when it cannot be had."""
    try:
        manifest = client_for(spec.base.registry).get_manifest(spec.base.repository, str(base.digest))
    except SqshpipeError:
        return None
    layers = getattr(manifest, "layers", ())
    return sum(layer.size for layer in layers) or None
