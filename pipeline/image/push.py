"""Push: from the engine to the registry, under the build key; the version's tag follows with the release.

The key's tag is what makes a build unnecessary: a run that died after its push is resumed from there, also on
another machine. A version's tag comes last, so that a version which the scan stopped is not used up where
tags are immutable.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.authn import place_of
from pipeline.config.names import Version
from pipeline.docker.engine import Engine
from pipeline.docker.events import Denied
from pipeline.errors import RegistryError, SqshpipeError, ToolError
from pipeline.image.build import BuiltImage
from pipeline.image.pin import BaseImage
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import Manifest
from pipeline.oci.reference import Reference
from pipeline.progress import NO_TASK, Task
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import CredentialsProvider, RenewableProvider, credentials_for
from pipeline.registry.images import image_manifest
from pipeline.system.log import log


@dataclass(frozen=True, slots=True, kw_only=True)
class PushedImage:
    """An image in the registry: ``repository@digest``. `size` is the stored bytes of config and layers.

    `build_key` is None for a base that was mirrored. `adopted` says that it was there already.
    """

    repository: Reference
    digest: Digest
    config_digest: Digest
    size: int
    base: BaseImage
    build_key: str | None
    adopted: bool

    @property
    def reference(self) -> Reference:
        """``host/repo@sha256:…``."""
        return self.repository.with_digest(self.digest)


def key_tag(key: str) -> str:
    """The tag under which an image with this build key is pushed."""
    return f"key-{key}"


def adopt(repository: Reference, key: str, base: BaseImage, client: RegistryClient) -> PushedImage | None:
    """The image that was pushed under `key` before; None when nothing was.

    Raises RegistryError when the registry cannot be asked.
    """
    found = client.head(repository.repository, key_tag(key))
    if found is None:
        return None
    manifest = image_manifest(client, repository.with_digest(found.digest), base.platform)
    return pushed_image(repository, manifest, base, key, adopted=True)


def push(
    built: BuiltImage,
    repository: Reference,
    engine: Engine,
    client: RegistryClient,
    *,
    credentials: CredentialsProvider = credentials_for,
    task: Task = NO_TASK,
) -> PushedImage:
    """Push `built` as ``repository:key-<key>``, or adopt what another run has pushed there meanwhile.

    Two runs with the same key may build at the same time. Where tags are immutable the registry refuses the
    second one, which takes the image of the first. The digest is the one that the engine gives, and the
    registry has to confirm it under the tag. Raises RegistryError when the registry refuses, cannot be
    reached, or has something else than was pushed.
    """
    target = repository.with_tag(key_tag(built.key))
    engine.tag(built.local_id, target)
    try:
        digest = _send(target, engine, credentials, task)
    except RegistryError:
        winner = _winner(built, repository, client)
        if winner is None:
            raise
        return winner
    found = client.head(repository.repository, key_tag(built.key))
    if found is None or found.digest != digest:
        has = "nothing" if found is None else str(found.digest)
        raise RegistryError(
            f"{target} was pushed as {digest}, but the registry has {has} there",
            hint="somebody else pushes to this repository, or the registry is not consistent; run it again",
        )
    manifest = image_manifest(client, repository.with_digest(digest), built.base.platform)
    if built.config_digest is not None and manifest.config.digest != built.config_digest:
        raise ToolError(
            f"{target} has the config {manifest.config.digest}, but {built.config_digest} was built",
            hint="the Docker Engine pushed another image than it built; run it again",
        )
    return pushed_image(repository, manifest, built.base, built.key, adopted=False)


def _winner(built: BuiltImage, repository: Reference, client: RegistryClient) -> PushedImage | None:
    """The image that another run has pushed under the key of `built`; None when it cannot be seen."""
    try:
        found = adopt(repository, built.key, built.base, client)
    except SqshpipeError:  # the push's own error says more
        return None
    if found is not None:
        log.info("another run has pushed this build, adopting its image", image=str(found.reference))
    return found


def _send(target: Reference, engine: Engine, credentials: CredentialsProvider, task: Task) -> Digest:
    """The engine's push, repeated once when the password has ended on the way: ECR's last 12 hours.

    The engine gets a password when it begins, and does not say whether a refusal means its end.
    """
    place = place_of(credentials, target.name)
    given = credentials(place)
    try:
        return engine.push(target, given, task)
    except Denied:
        fresh = credentials.renew(place) if isinstance(credentials, RenewableProvider) else None
        if fresh is None or fresh == given:
            raise
        log.warning("the registry no longer takes the password, retrying with a new one", image=str(target))
        return engine.push(target, fresh, task)


def tag_version(pushed: PushedImage, version: Version, client: RegistryClient) -> None:
    """Put the image's manifest under the version's tag; nothing is done when it has that tag already.

    Raises RegistryError when the tag stands for another image.
    """
    name = pushed.repository.repository
    found = client.head(name, version)
    if found is not None and found.digest == pushed.digest:
        return
    if found is not None:
        raise RegistryError(
            f"{pushed.repository.with_tag(version)} is another image already: {found.digest}"
            f", not {pushed.digest}",
            hint="a version is never moved to other content: choose the next version",
        )
    manifest = client.get_manifest(name, str(pushed.digest))
    client.put_manifest(name, version, manifest.raw, manifest.media_type)


def pushed_image(
    repository: Reference, manifest: Manifest, base: BaseImage, key: str | None, *, adopted: bool
) -> PushedImage:
    """The image of a manifest that is in the registry; `key` is None where the build key is not known."""
    return PushedImage(
        repository=repository,
        digest=manifest.digest,
        config_digest=manifest.config.digest,
        size=manifest.config.size + manifest.size,
        base=base,
        build_key=key,
        adopted=adopted,
    )
