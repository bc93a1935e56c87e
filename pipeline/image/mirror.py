"""Mirror: a base goes from its registry to ours as it is, without an engine and without a copy on disk.

Bytes are not changed, so digests stay what they are: the platform's manifest keeps its digest, and with all
platforms the index keeps its own.
"""

from __future__ import annotations

from pipeline.image.pin import BaseImage
from pipeline.image.push import PushedImage, key_tag, pushed_image
from pipeline.oci.reference import Reference
from pipeline.progress import NO_TASK, Task
from pipeline.registry.client import RegistryClient
from pipeline.registry.images import image_manifest
from pipeline.registry.transfer import copy


def mirror(
    base: BaseImage,
    repository: Reference,
    source_client: RegistryClient,
    target_client: RegistryClient,
    task: Task = NO_TASK,
    *,
    all_platforms: bool = False,
) -> PushedImage:
    """Copy the base's image into ``repository``; what is there already is not sent again.

    The platform's manifest gets the tag ``key-<its hex>``, so that no clean-up of untagged images takes it;
    with ``all_platforms`` the index around it gets one too. The result is the platform's image either way.
    Raises RegistryError; call it again to resume an interrupted copy.
    """
    wanted = base.index_digest if all_platforms and base.index_digest is not None else base.digest
    known = target_client.head(repository.repository, key_tag(wanted.hex))
    adopted = known is not None and known.digest == wanted
    if not adopted:
        copy(
            source_client,
            base.reference.repository,
            wanted,
            target_client,
            repository.repository,
            tags={wanted: key_tag(wanted.hex), base.digest: key_tag(base.digest.hex)},
            task=task,
        )
    manifest = image_manifest(target_client, repository.with_digest(base.digest), None)
    return pushed_image(repository, manifest, base, None, adopted=adopted)
