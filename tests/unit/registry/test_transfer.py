"""Copies between registries: layers that may not be distributed, and what is there already."""

from __future__ import annotations

import json

import pytest

from pipeline.oci.digest import Digest
from pipeline.oci.manifest import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from pipeline.registry.errors import Refused
from pipeline.registry.transfer import copy
from tests.support.fake_registry import FakeRegistry

FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
CONFIG, LAYER, AWAY = b"{}", b"zstd layer", b"a layer that lies elsewhere"


def described(data: bytes, media_type: str, **more: object) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(Digest.of(data)), "size": len(data), **more}


def made(second_type: str) -> tuple[FakeRegistry, Digest, bytes]:
    """An image whose second layer no registry has; the first is zstd."""
    layers = [
        described(LAYER, OCI_LAYER + "+zstd"),
        described(AWAY, second_type, urls=["https://elsewhere.example.com/layer"]),
    ]
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": layers}
    raw = json.dumps({**manifest, "config": described(CONFIG, OCI_CONFIG)}).encode()
    source = FakeRegistry("source.example.com")
    source.blobs = {str(Digest.of(data)): data for data in (CONFIG, LAYER)}
    source.manifests[str(Digest.of(raw))] = (raw, OCI_MANIFEST)
    return source, Digest.of(raw), raw


def test_a_foreign_layer_stays_where_it_is_and_the_manifest_as_it_was() -> None:
    source, digest, raw = made(FOREIGN)
    target = FakeRegistry("target.example.com")
    with source.client() as from_there, target.client() as to_here:
        copy(from_there, "a/b", digest, to_here, "c/d", tags={digest: "v1"})
    assert target.manifests["v1"] == (raw, OCI_MANIFEST)
    assert target.blobs == source.blobs


def test_another_layer_that_is_missing_ends_the_copy_without_an_image() -> None:
    source, digest, _ = made(OCI_LAYER)
    target = FakeRegistry("target.example.com")
    with source.client() as from_there, target.client() as to_here, pytest.raises(Refused):
        copy(from_there, "a/b", digest, to_here, "c/d", tags={digest: "v1"})
    assert target.manifests == {}
