from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.errors import ConfigError, FormatError
from pipeline.oci.config import parse_config
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Index, Manifest, parse_manifest
from pipeline.oci.platform import Platform

AMD64 = Platform.parse("linux/amd64")


def descriptor(**changes: Any) -> dict[str, Any]:
    value = {
        "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
        "digest": str(Digest.of(b"x")),
        "size": 1,
    }
    return {**value, **changes}


def image(**changes: Any) -> bytes:
    value = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(mediaType="application/vnd.oci.image.config.v1+json"),
        "layers": [descriptor(), descriptor(mediaType="application/vnd.docker.image.rootfs.diff.tar.zstd")],
    }
    return json.dumps({key: part for key, part in {**value, **changes}.items() if part is not None}).encode()


def index(*platforms: dict[str, str] | None) -> Index:
    entries = []
    for number, platform in enumerate(platforms):
        entry = descriptor(mediaType=OCI_MANIFEST, digest=str(Digest.of(b"%d" % number)))
        entries.append({**entry, "platform": platform} if platform else entry)
    found = parse_manifest(json.dumps({"schemaVersion": 2, "manifests": entries}).encode(), OCI_INDEX)
    assert isinstance(found, Index)
    return found


def test_an_image_manifest() -> None:
    raw = image()
    manifest = parse_manifest(raw, f"{OCI_MANIFEST}; charset=utf-8")
    assert isinstance(manifest, Manifest)
    assert manifest.digest == Digest.of(raw)
    assert [layer.compression for layer in manifest.layers] == ["gzip", "zstd"]
    assert manifest.size == 2
    assert parse_manifest(image(mediaType=None), DOCKER_MANIFEST).media_type == DOCKER_MANIFEST
    assert parse_manifest(image(mediaType=None), None).media_type == OCI_MANIFEST


@pytest.mark.parametrize(
    ("raw", "media_type", "words"),
    [
        (b"", None, "not JSON"),
        (b"[]", None, "not a JSON object"),
        (b"\xff{}", None, "not JSON"),
        (b"[" * 100_000, None, "nested too deeply"),
        (b'{"schemaVersion":2,"a":' + b"[" * 40 + b"]" * 40 + b"}", None, "32 deep"),
        (b'{"schemaVersion":2,"schemaVersion":2}', None, "twice"),
        (b'{"schemaVersion":NaN}', None, "NaN"),
        (b'{"schemaVersion":' + b"9" * 5000 + b"}", None, "64 bits"),
        (b" " * (5 << 20), None, "more than"),
        (image(schemaVersion=1), None, "schema 1"),
        (image(schemaVersion=3), None, "schemaVersion 2"),
        (image(manifests=[]), None, "both an image and an index"),
        (image(layers=None, config=None), None, "neither"),
        (image(mediaType=OCI_INDEX), None, "image manifest inside"),
        (image(), DOCKER_MANIFEST, "announced"),
        (image(mediaType=None), OCI_INDEX, "image manifest inside"),
        (image(mediaType=None, MediaType=OCI_INDEX), None, "is meant"),
        (image(Layers=[]), None, "is meant"),
        (image(config=None), None, "not a descriptor"),
        (image(layers={}), None, "not a list"),
        (image(layers=[descriptor()] * 1025), None, "more than the 1024"),
        (image(layers=[descriptor(size=-1)]), None, "not a size"),
        (image(layers=[descriptor(size=True)]), None, "not a size"),
        (image(layers=[descriptor(size="1")]), None, "not a size"),
        (
            image(layers=[descriptor(digest="md5:00")]),
            None,
            "layers\\[0\\]: digest algorithm 'md5' is not known",
        ),
        (image(layers=[descriptor(mediaType="")]), None, "no mediaType"),
        (image(annotations={"a": 1}), None, "not a string"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_is_refused(raw: bytes, media_type: str | None, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        parse_manifest(raw, media_type)


def test_a_blob_that_is_no_layer_has_no_compression() -> None:
    manifest = parse_manifest(image(layers=[descriptor(mediaType="application/vnd.cncf.helm.chart")]), None)
    assert isinstance(manifest, Manifest)
    with pytest.raises(FormatError, match="not an image layer"):
        _ = manifest.layers[0].compression


def test_select_takes_the_platform_and_skips_attestations() -> None:
    found = index(
        {"os": "unknown", "architecture": "unknown"},
        {"os": "linux", "architecture": "arm64", "variant": "v8"},
        {"os": "linux", "architecture": "amd64", "variant": "v3"},
        {"os": "linux", "architecture": "amd64"},
    )
    assert found.select(AMD64) == found.manifests[3]
    assert found.select(Platform.parse("linux/amd64/v3")) == found.manifests[2]
    assert found.select(Platform.parse("linux/arm64")) == found.manifests[1]
    with pytest.raises(ConfigError) as caught:
        found.select(Platform.parse("linux/s390x"))
    assert caught.value.hint == "it offers linux/amd64, linux/amd64/v3, linux/arm64/v8"


def test_select_takes_a_sole_entry_without_platform() -> None:
    found = index(None)
    assert found.select(AMD64) == found.manifests[0]
    with pytest.raises(ConfigError):
        index(None, None).select(AMD64)


def config(run: dict[str, Any] | None = None, **changes: Any) -> bytes:
    value = {
        "os": "linux",
        "architecture": "amd64",
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": []},
    }
    return json.dumps({**value, **changes}).encode()


def test_a_config() -> None:
    raw = config(
        {
            "Env": ["A=b"],
            "Cmd": None,
            "Entrypoint": "sh",
            "WorkingDir": "/w",
            "Volumes": {"/b": {}, "/a": {}},
        },
        created="2024-01-01T00:00:00Z",
    )
    found = parse_config(raw)
    assert (found.env, found.cmd, found.entrypoint, found.volumes) == (("A=b",), (), ("sh",), ("/a", "/b"))
    assert found.platform == AMD64
    assert found.digest == Digest.of(raw)
    assert found.created == "2024-01-01T00:00:00Z"
    assert parse_config(config(None)).env == ()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"{}", "not the config of a container image"),
        (config(rootfs={"type": "other"}), "not the config"),
        (config({"Env": [1]}), "list of strings"),
        (config({"Env": ["A=\0"]}), "NUL"),
        (config({"Labels": {"a": 1}}), "not a string"),
        (config({"env": ["A=b"]}), "is meant"),
        (config(rootfs={"type": "layers", "diff_ids": ["sha256:x"]}), "sha256 digest"),
    ],
)
def test_a_bad_config_is_refused(raw: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        parse_config(raw)
