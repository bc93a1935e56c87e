"""From a reference to the manifest of one platform's image: the only way down a registry's indexes."""

from __future__ import annotations

from pipeline.oci.manifest import Index, Manifest, descend
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference
from pipeline.registry.client import RegistryClient


def image_manifest(client: RegistryClient, reference: Reference, platform: Platform | None) -> Manifest:
    """The manifest of ``reference`` for ``platform``; None: the reference has to name one image itself.

    Attestations in an index are never taken.

    Raises:
        RegistryError: the registry refuses, or does not have it.
        NotOneImage: the reference names no image of the platform, or an index where one image is needed.
        FormatError: what the registry has is not a manifest, or is nested too deep.
    """

    def read(name: str) -> Manifest | Index:
        return client.get_manifest(reference.repository, name)

    return descend(
        read(reference.identifier), platform, lambda entry: read(str(entry.digest)), str(reference)
    )
