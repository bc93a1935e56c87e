"""Pin: from a base's name to the digest of one platform's image.

A tag is a name for people and may move. A locked digest is what counts; a tag that has moved since is
reported, but not used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.config.lock import Lock, LockedBase
from pipeline.errors import RegistryError
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import Manifest, NotOneImage
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference
from pipeline.registry.client import RegistryClient
from pipeline.registry.images import image_manifest
from pipeline.system.log import log


class DoesNotExist(RegistryError):
    """The registry has no image of that name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseImage:
    """A base pinned by digest.

    ``digest`` is that of the platform's manifest, ``index_digest`` that of the index which contains it, if
    there is one. ``moved_to`` is the digest that the tag names now, when it differs from the locked one.
    """

    reference: Reference
    platform: Platform
    digest: Digest
    index_digest: Digest | None
    locked: bool
    moved_to: Digest | None = None

    @property
    def pinned(self) -> Reference:
        """``host/repo@sha256:…``: what a build starts from."""
        return self.reference.with_tag(None).with_digest(self.digest)


def pin(
    reference: Reference,
    platform: Platform,
    lock: Lock | None,
    client_for: Callable[[str], RegistryClient],
) -> BaseImage:
    """Pin ``reference`` for ``platform``: from ``lock`` if it is there, else as the registry has it now.

    Raises RegistryError when the registry refuses, DoesNotExist when it does not have it, ConfigError when
    the base is not made for the platform. A locked base whose registry cannot be asked for the tag is still
    pinned, with a warning.
    """
    client = client_for(reference.registry)
    held = lock.get(reference, platform) if lock is not None and reference.digest is None else None
    if held is not None:
        return BaseImage(
            reference=reference,
            platform=platform,
            digest=held.digest,
            index_digest=held.index_digest,
            locked=True,
            moved_to=_moved(reference, held, client),
        )
    digest, index_digest = find(reference, platform, client)
    return BaseImage(
        reference=reference,
        platform=platform,
        digest=digest,
        index_digest=index_digest,
        locked=reference.digest is not None,
    )


def _moved(reference: Reference, held: LockedBase, client: RegistryClient) -> Digest | None:
    try:
        now = client.head(reference.repository, reference.identifier)
    except RegistryError as error:
        log.warning("cannot look whether the base has moved, using the locked digest", reason=error.headline)
        return None
    if now is None:
        log.warning("the registry no longer has the base's tag, using the locked digest", base=str(reference))
        return None
    if now.digest in (held.digest, held.index_digest):
        return None
    log.warning(
        "the base's tag has moved since it was locked; sqshpipe lock takes the new digest",
        base=str(reference),
        locked=str(held.index_digest or held.digest),
        now=str(now.digest),
    )
    return now.digest


def find(reference: Reference, platform: Platform, client: RegistryClient) -> tuple[Digest, Digest | None]:
    """What the registry has now: the platform's manifest, and the outermost index around it.

    Attestations of an index are never taken. An image without an index is checked against its config's
    platform.
    """
    top = client.head(reference.repository, reference.identifier)
    if top is None:
        raise DoesNotExist(f"{reference} does not exist", hint="check the name and the tag")
    found = image_manifest(client, reference.with_digest(top.digest), platform)
    _check_platform(reference, platform, found, client)
    return found.digest, None if found.digest == top.digest else top.digest


def _check_platform(
    reference: Reference, platform: Platform, manifest: Manifest, client: RegistryClient
) -> None:
    config = client.get_config(reference.repository, manifest)
    if not platform.matches(config.platform):
        raise NotOneImage(
            f"{reference} is not made for {platform}", hint=f"it is made for {config.platform} alone"
        )
