"""The facts that a plan needs: what bases stand for, what was released, what the registry holds already.

Only reads: registries by HEAD, the store's records, the build contexts. Images are looked at side by side,
a base that several share is asked for once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from pipeline import inputs, plan
from pipeline.config.types import Config, ImageSpec
from pipeline.errors import FormatError, SqshpipeError
from pipeline.lock import Lock
from pipeline.oci.digest import Digest
from pipeline.plan import Observation, Released
from pipeline.stages.pin import BaseImage, pin
from pipeline.store.record import Release
from pipeline.store.store import Store
from pipeline.system.workers import each
from pipeline.tools.registry import RegistryClient

_WORKERS = 16
_LIVE = ("published", "hidden", "yanked")

ClientFor = Callable[[str], RegistryClient]
_Pinned = BaseImage | SqshpipeError


def observe(
    config: Config,
    specs: Sequence[ImageSpec],
    lock: Lock,
    client_for: ClientFor,
    *,
    version: str | None = None,
    now: datetime | None = None,
) -> tuple[Observation, ...]:
    """One observation an image, in the order of ``specs``.

    A base that cannot be pinned becomes that observation's ``base_problem``. Raises RegistryError when the
    configured registry fails, ConfigError for contexts that cannot be read, PublishError for a damaged store.
    """
    if not specs:
        return ()
    moment = now or datetime.now(timezone.utc)
    keys = {(str(spec.base), str(spec.platform)): spec for spec in specs}
    found = each(lambda spec: _pin(spec, lock, client_for), keys.values(), workers=_WORKERS)
    pinned = dict(zip(keys, found, strict=True))

    def one(spec: ImageSpec) -> Observation:
        base = pinned[str(spec.base), str(spec.platform)]
        return _observe(config, spec, base, client_for, version, moment)

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
    version: str | None,
    now: datetime,
) -> Observation:
    store = Store(config.store.root)
    platform = str(spec.platform)
    newest = _newest(store, spec)
    taken = _facts(store.release(spec.name, version, platform)) if version else None
    seen = Observation(
        spec=spec,
        version=version,
        newest=newest,
        taken=taken,
        target=store.layout.link(spec.name, version, platform) if version else None,
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
    if reference is not None and plan.is_current(reference, seen):
        return seen
    return replace(seen, pushed=_pushed(config, seen, client_for), base_size=_size(spec, pinned, client_for))


def _newest(store: Store, spec: ImageSpec) -> Released | None:
    """The last release that can still be used, for the spec's platform."""
    platform = str(spec.platform)
    for line in store.listed(spec.name):
        if line.platform == platform and line.state in _LIVE:
            return _facts(store.release(spec.name, line.version, platform))
    return None


def released(release: Release) -> Released:
    """What the record of ``release`` says about how it came to be."""
    converter: Mapping[str, Any] = release.converter or {}
    return Released(
        version=release.version,
        state=release.state,
        source=_digest(release.source),
        base=_digest(release.base),
        build_key=release.keys.get("build") or None,
        inputs=_mapping(release.provenance.get("inputs")),
        converter=converter.get("name"),
        options=_mapping(converter.get("options")),
        scan_policy=_mapping(release.provenance.get("scan_policy")),
        size=release.size,
        created=_time(release.created),
    )


def _facts(release: Release | None) -> Released | None:
    return None if release is None else released(release)


def _digest(named: Mapping[str, str] | None) -> Digest | None:
    try:
        return Digest.parse(named["digest"]) if named and named.get("digest") else None
    except FormatError:
        return None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return datetime.fromtimestamp(0, timezone.utc)


def _pushed(config: Config, seen: Observation, client_for: ClientFor) -> Digest | None:
    """What the registry has of the wanted image already; without a registry nothing is there."""
    if config.registry.url is None and config.registry.ecr is None:
        return None
    repository = config.registry.repository(seen.spec.name)
    wanted = str(seen.base) if seen.spec.mirrored else f"key-{plan.wanted_key(seen)}"
    found = client_for(repository.registry).head(repository.repository, wanted)
    return found.digest if found else None


def _size(spec: ImageSpec, base: BaseImage, client_for: ClientFor) -> int | None:
    """The base's compressed bytes: a guess of what a first release writes. None when it cannot be had."""
    try:
        manifest = client_for(spec.base.registry).get_manifest(spec.base.repository, str(base.digest))
    except SqshpipeError:
        return None
    layers = getattr(manifest, "layers", ())
    return sum(layer.size for layer in layers) or None
