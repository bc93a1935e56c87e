"""Copy from registry to registry: manifests and blobs by digest, streamed, unchanged.

What the target has already is not sent again. Blobs are sent before the manifests that name them, manifests
before the index that names them.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator

from pipeline.errors import FormatError, RegistryError
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import Descriptor, Index, Manifest
from pipeline.progress import NO_TASK, Task
from pipeline.registry.client import RegistryClient
from pipeline.registry.download import checked, chunks, first_failure
from pipeline.system.log import log
from pipeline.system.parallel import Crew

_MAX_MANIFESTS = 512


def copy(
    source: RegistryClient,
    source_repository: str,
    digest: Digest,
    target: RegistryClient,
    target_repository: str,
    *,
    tags: dict[Digest, str],
    task: Task = NO_TASK,
) -> None:
    """Copy a manifest or a whole index by digest, and put each of ``tags`` on the manifest that it is for."""
    manifests = list(_collect(source, source_repository, digest))
    blobs = _blobs(manifests)
    task.total(sum(blob.size for blob in blobs))
    stop = threading.Event()
    move = functools.partial(
        _move, source, source_repository, target, target_repository, task=task, stop=stop
    )
    with Crew(target.workers, name="mirror") as crew:
        # the largest first: a small one at the end keeps no worker waiting
        ordered = sorted(blobs, key=lambda blob: -blob.size)
        first_failure([crew.submit(move, blob) for blob in ordered], stop)
    for manifest in manifests:
        # by digest for all, since a tag may be taken where tags are immutable
        target.put_manifest(target_repository, str(manifest.digest), manifest.raw, manifest.media_type)
    for manifest in manifests:
        tag = tags.get(manifest.digest)
        if tag is not None:
            target.put_manifest(target_repository, tag, manifest.raw, manifest.media_type)


def _collect(client: RegistryClient, repository: str, top: Digest) -> Iterator[Manifest | Index]:
    """The manifest and all that it names, children first: an index without its children is not valid."""
    seen: set[Digest] = set()

    def below(digest: Digest) -> Iterator[Manifest | Index]:
        if digest in seen:
            return
        seen.add(digest)
        if len(seen) > _MAX_MANIFESTS:
            raise FormatError(f"{client.host}/{repository}@{top} names more than {_MAX_MANIFESTS} manifests")
        found = client.get_manifest(repository, str(digest))
        if isinstance(found, Index):
            for child in found.manifests:
                yield from below(child.digest)
        yield found

    return below(top)


def _blobs(manifests: list[Manifest | Index]) -> list[Descriptor]:
    found: dict[Digest, Descriptor] = {}
    for manifest in manifests:
        if isinstance(manifest, Manifest):
            for blob in (manifest.config, *manifest.layers):
                found.setdefault(blob.digest, blob)
    return list(found.values())


def _move(
    source: RegistryClient,
    source_repository: str,
    target: RegistryClient,
    target_repository: str,
    blob: Descriptor,
    *,
    task: Task,
    stop: threading.Event,
) -> None:
    """One blob from registry to registry: found there, mounted, or streamed through."""
    if source.host == target.host and target.has_blob(target_repository, blob.digest):
        task.advance(blob.size)
        return
    if source.host == target.host and target.mount_blob(target_repository, blob.digest, source_repository):
        task.advance(blob.size)
        return

    def pieces(offset: int) -> Iterator[bytes]:
        # the whole is checked here; a rest that is sent again after a cut is checked by the target's digest
        if offset == 0:
            return checked(source.session, source_repository, blob, stop=stop)
        return chunks(source.session, source_repository, blob, offset=offset, stop=stop)

    try:
        target.push_blob(target_repository, blob, pieces, task)
    except RegistryError:
        if _stays_where_it_is(blob) and not source.has_blob(source_repository, blob.digest):
            log.info("a foreign layer stays where it is", blob=str(blob.digest))
            return
        raise


def _stays_where_it_is(blob: Descriptor) -> bool:
    """Whether `blob` is a layer that may not be distributed: a registry need not have it."""
    return ".foreign." in blob.media_type or ".nondistributable." in blob.media_type
