"""Images pushed into a registry of a test: any bytes as layers, indexes of several platforms."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping

from pipeline.oci.digest import Digest
from pipeline.oci.manifest import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Descriptor, Index, Manifest
from pipeline.oci.platform import Platform
from pipeline.registry.client import RegistryClient


def push_image(
    client: RegistryClient,
    repository: str,
    *layers: bytes,
    tag: str = "v1",
    platform: str = "linux/amd64",
    layer_type: str = OCI_LAYER,
) -> Manifest:
    """A small image whose layers are any bytes, under ``tag``."""
    where = Platform.parse(platform)
    config = {"architecture": where.architecture, "os": where.os, "config": {}}
    diff_ids = [str(Digest.of(layer)) for layer in layers]
    config_bytes = json.dumps({**config, "rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode()
    raw = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": push_bytes(client, repository, OCI_CONFIG, config_bytes),
            "layers": [push_bytes(client, repository, layer_type, layer) for layer in layers],
        }
    ).encode()
    client.put_manifest(repository, tag, raw, OCI_MANIFEST)
    found = client.get_manifest(repository, tag)
    assert isinstance(found, Manifest)
    return found


def push_bytes(client: RegistryClient, repository: str, media_type: str, data: bytes) -> dict[str, object]:
    """One blob; gives its descriptor as a manifest holds it."""
    digest = Digest.of(data)
    client.push_blob(
        repository, Descriptor(media_type=media_type, digest=digest, size=len(data)), io.BytesIO(data)
    )
    return {"mediaType": media_type, "digest": str(digest), "size": len(data)}


def push_index(
    client: RegistryClient, repository: str, children: Mapping[str, Manifest], *, tag: str = "v1"
) -> Index:
    """An index over ``children``, keyed by platform; ``unknown/unknown`` is marked as an attestation."""
    entries: list[dict[str, object]] = []
    for platform, child in children.items():
        os_name, architecture = platform.split("/")
        entry: dict[str, object] = {
            "mediaType": child.media_type,
            "digest": str(child.digest),
            "size": len(child.raw),
            "platform": {"os": os_name, "architecture": architecture},
        }
        if os_name == "unknown":
            entry["annotations"] = {"vnd.docker.reference.type": "attestation-manifest"}
        entries.append(entry)
    raw = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
    client.put_manifest(repository, tag, raw, OCI_INDEX)
    found = client.get_manifest(repository, tag)
    assert isinstance(found, Index)
    return found
