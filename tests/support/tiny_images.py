"""Small images put straight into a registry, for tests that need a tag and its digest and no engine."""

from __future__ import annotations

import io
import json

from pipeline.oci.digest import Digest
from pipeline.oci.manifest import Descriptor
from pipeline.registry.client import RegistryClient
from tests.support.layers import LayerBuilder

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"


def push_image(
    client: RegistryClient, repository: str, tag: str, *, content: str, platform: str = "linux/amd64"
) -> Digest:
    """One layer with ``content`` in the file /etc/content, under ``tag``; gives the manifest's digest."""
    raw = _image(client, repository, content, platform)
    return client.put_manifest(repository, tag, raw, _MANIFEST)


def push_index(
    client: RegistryClient, repository: str, tag: str, *, content: str, platforms: tuple[str, ...]
) -> tuple[Digest, dict[str, Digest]]:
    """An index of one image a platform under ``tag``; gives its digest and those of the platforms."""
    entries, digests = [], {}
    for platform in platforms:
        raw = _image(client, repository, f"{content} {platform}", platform)
        digest = client.put_manifest(repository, str(Digest.of(raw)), raw, _MANIFEST)
        digests[platform] = digest
        os_name, architecture = platform.split("/")
        entries.append(
            {
                "mediaType": _MANIFEST,
                "digest": str(digest),
                "size": len(raw),
                "platform": {"os": os_name, "architecture": architecture},
            }
        )
    index = json.dumps({"schemaVersion": 2, "mediaType": _INDEX, "manifests": entries}).encode()
    return client.put_manifest(repository, tag, index, _INDEX), digests


def _image(client: RegistryClient, repository: str, content: str, platform: str) -> bytes:
    # The shell is one by name only: without it a .sqsh fails verification.
    files = LayerBuilder().dir("bin").file("bin/sh", b"#!", mode=0o755)
    layer = files.dir("etc").file("etc/content", content.encode()).tar()
    os_name, architecture = platform.split("/")
    config = json.dumps(
        {
            "os": os_name,
            "architecture": architecture,
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(layer))]},
        }
    ).encode()
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _push(client, repository, config, _CONFIG),
            "layers": [_push(client, repository, layer, _LAYER)],
        }
    ).encode()


def _push(client: RegistryClient, repository: str, data: bytes, media_type: str) -> dict[str, object]:
    digest = Digest.of(data)
    descriptor = Descriptor(media_type=media_type, digest=digest, size=len(data))
    client.push_blob(repository, descriptor, io.BytesIO(data))
    return {"mediaType": media_type, "digest": str(digest), "size": len(data)}
