"""The way down from an index to the image of one platform, the same for every part of the pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from pipeline.convert.sources import open_registry
from pipeline.errors import ConfigError, FormatError, SqshpipeError
from pipeline.image.mirror import mirror
from pipeline.image.pin import BaseImage, find
from pipeline.image.push import adopt, key_tag
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import DOCKER_INDEX, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, NotOneImage
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference
from pipeline.registry.client import RegistryClient
from pipeline.registry.images import image_manifest
from tests.support.fake_registry import HOST, FakeRegistry

AMD, ARM = Platform.parse("linux/amd64"), Platform.parse("linux/arm64")
KEY = "ab" * 32


class Images:
    """A registry that has whatever is put into it under ``key-…`` and ``v1``."""

    def __init__(self) -> None:
        self.registry = FakeRegistry()
        self.client = self.registry.client()

    def put(self, value: object, media_type: str, *, tag: bool = False) -> dict[str, object]:
        raw = json.dumps(value).encode()
        digest = str(Digest.of(raw))
        for name in (digest, *(("v1", key_tag(KEY)) if tag else ())):
            self.registry.manifests[name] = (raw, media_type)
        return {"mediaType": media_type, "digest": digest, "size": len(raw)}

    def image(self, platform: str = "amd64", *, tag: bool = False) -> dict[str, object]:
        config = json.dumps(
            {"os": "linux", "architecture": platform, "rootfs": {"type": "layers", "diff_ids": []}}
        ).encode()
        self.registry.blobs[str(Digest.of(config))] = config
        blob = {"mediaType": OCI_CONFIG, "digest": str(Digest.of(config)), "size": len(config)}
        value = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": blob, "layers": []}
        return self.put(value, OCI_MANIFEST, tag=tag)

    def index(
        self, *entries: tuple[dict[str, object], str], tag: bool = True, media_type: str = OCI_INDEX
    ) -> dict[str, object]:
        listed = [
            {**entry, "platform": {"os": "linux", "architecture": platform}} for entry, platform in entries
        ]
        return self.put(
            {"schemaVersion": 2, "mediaType": media_type, "manifests": listed}, media_type, tag=tag
        )


REFERENCE = Reference(registry=HOST, repository="a/b", tag="v1")
Way = Callable[[RegistryClient, Platform], str]


def by_adopt(client: RegistryClient, platform: Platform) -> str:
    base = BaseImage(
        reference=REFERENCE, platform=platform, digest=Digest.of(b"x"), index_digest=None, locked=True
    )
    found = adopt(REFERENCE.with_tag(None), KEY, base, client)
    assert found is not None
    return str(found.digest)


WAYS: dict[str, Way] = {
    "image_manifest": lambda client, platform: str(image_manifest(client, REFERENCE, platform).digest),
    "pin": lambda client, platform: str(find(REFERENCE, platform, client)[0]),
    "convert": lambda client, platform: str(
        open_registry(REFERENCE, platform, lambda _: client).manifest().digest
    ),
    "adopt": by_adopt,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_INDEX])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_platform_is_found_through_indexes(way: str, media_type: str, depth: int) -> None:
    made = Images()
    amd, arm = made.image("amd64"), made.image("arm64")
    top = made.index((amd, "amd64"), (arm, "arm64"), media_type=media_type)
    for _ in range(depth):
        top = made.index((top, "amd64"), (top, "arm64"), media_type=media_type)
    assert WAYS[way](made.client, AMD) == amd["digest"]
    assert WAYS[way](made.client, ARM) == arm["digest"]


@pytest.mark.parametrize("way", WAYS)
def test_an_index_without_the_platform_is_usage(way: str) -> None:
    made = Images()
    made.index((made.image("amd64"), "amd64"))
    with pytest.raises(NotOneImage) as caught:
        WAYS[way](made.client, ARM)
    assert caught.value.exit_code == 2
    assert "not made for linux/arm64" in caught.value.message
    assert caught.value.hint == "it offers linux/amd64"


@pytest.mark.parametrize("way", WAYS)
def test_an_index_of_attestations_alone_is_usage(way: str) -> None:
    made = Images()
    made.index((made.image("amd64"), "unknown"))
    with pytest.raises(ConfigError) as caught:
        WAYS[way](made.client, AMD)
    assert "no platform at all" in caught.value.hint


@pytest.mark.parametrize("way", WAYS)
def test_indexes_nested_too_deep_are_bad_bytes(way: str) -> None:
    made = Images()
    top = made.index((made.image(), "amd64"))
    for _ in range(3):
        top = made.index((top, "amd64"))
    with pytest.raises(FormatError, match="nested") as caught:
        WAYS[way](made.client, AMD)
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("way", WAYS)
def test_bad_bytes_are_bad_bytes(way: str) -> None:
    made = Images()
    made.put(
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{"mediaType": OCI_LAYER}]},
        OCI_INDEX,
        tag=True,
    )
    with pytest.raises(SqshpipeError) as caught:
        WAYS[way](made.client, AMD)
    assert caught.value.exit_code == 6


def test_where_one_image_is_needed_an_index_is_usage() -> None:
    made = Images()
    top = made.index((made.image(), "amd64"))
    digest = Digest.parse(str(top["digest"]))
    with pytest.raises(NotOneImage, match="is an index, not the image of one platform"):
        image_manifest(made.client, REFERENCE.with_digest(digest), None)
    base = BaseImage(reference=REFERENCE, platform=AMD, digest=digest, index_digest=None, locked=True)
    with pytest.raises(NotOneImage) as caught:
        mirror(base, Reference(registry=HOST, repository="a/b"), made.client, made.client)
    assert caught.value.exit_code == 2
