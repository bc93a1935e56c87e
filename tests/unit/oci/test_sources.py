from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, FormatError
from pipeline.oci.archive import open_archive
from pipeline.oci.layer import decompressed, read_layer
from pipeline.oci.layout import open_layout, parse_location
from pipeline.oci.platform import Platform
from pipeline.oci.source import ImageSource
from tests.support.images.layers import (
    LayerBuilder,
    compressed,
    image_config,
    write_docker_archive,
    write_layout,
)

AMD64, ARM64 = Platform.parse("linux/amd64"), Platform.parse("linux/arm64")
LAYERS = [LayerBuilder().file("a", b"1"), LayerBuilder().file("b", b"22"), LayerBuilder().file("c", b"333")]


def contents(source: ImageSource) -> dict[bytes, bytes]:
    """All files of all layers, read through every check that there is."""
    manifest, config = source.manifest(), source.config()
    found = {}
    for index, descriptor in enumerate(manifest.layers):
        with source.open_layer(index) as blob:
            stream = decompressed(blob, descriptor.compression)
            with read_layer(stream, diff_id=config.diff_ids[index]) as layer:
                found.update({entry.path: content.read() for entry, content in layer})
            assert stream.compression == descriptor.compression
            assert blob.read(1) == b""
    return found


ALL = {b"a": b"1", b"b": b"22", b"c": b"333"}


@pytest.mark.parametrize("in_index", [False, True])
def test_a_layout_with_all_compressions(tmp_path: Path, in_index: bool) -> None:
    digest = write_layout(tmp_path, LAYERS, compression=["gzip", "zstd", "none"], in_index=in_index)
    for tag in (None, "latest"):
        source = open_layout(tmp_path, tag, platform=AMD64)
        assert str(source.manifest().digest) == digest
        assert contents(source) == ALL
    assert source.name == f"oci:{tmp_path}:latest"


def test_a_layout_picks_by_tag_and_platform(tmp_path: Path) -> None:
    first = write_layout(tmp_path, LAYERS[:1], tag="v1")
    second = write_layout(tmp_path, LAYERS, tag="v2")
    assert str(open_layout(tmp_path, "v1", platform=AMD64).manifest().digest) == first
    assert str(open_layout(tmp_path, "v2", platform=AMD64).manifest().digest) == second
    with pytest.raises(ConfigError, match="v1, v2"):
        open_layout(tmp_path, "v3", platform=AMD64).manifest()
    with pytest.raises(ConfigError, match=r"holds 2 images.*v1, v2"):
        open_layout(tmp_path, platform=AMD64).manifest()
    with pytest.raises(ConfigError, match="is for linux/amd64, not for linux/arm64"):
        open_layout(tmp_path, "v1", platform=ARM64).config()


def test_a_layout_index_without_the_platform(tmp_path: Path) -> None:
    write_layout(tmp_path, LAYERS, in_index=True)
    with pytest.raises(ConfigError, match=r"nothing for linux/arm64 \(it offers linux/amd64\)"):
        open_layout(tmp_path, platform=ARM64).manifest()


def blob_paths(folder: Path) -> list[Path]:
    manifest = open_layout(folder, platform=AMD64).manifest()
    return [folder / "blobs" / "sha256" / layer.digest.hex for layer in manifest.layers]


def test_a_damaged_blob_is_noticed(tmp_path: Path) -> None:
    write_layout(tmp_path, LAYERS, compression="none")
    path = blob_paths(tmp_path)[1]
    data = path.read_bytes()
    for damaged, words in (
        (data.replace(b"22\0", b"23\0"), "layer 2 of oci:.* has digest"),
        (data[:-512], "ends after"),
        (data + bytes(512), "longer than"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match=words):
            contents(open_layout(tmp_path, platform=AMD64))
    path.unlink()
    with pytest.raises(FormatError, match="missing"):
        contents(open_layout(tmp_path, platform=AMD64))
    os.mkfifo(path)
    with pytest.raises(FormatError, match="not a regular file"):
        contents(open_layout(tmp_path, platform=AMD64))


def test_what_is_no_layout(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not an OCI image layout"):
        open_layout(tmp_path / "no", platform=AMD64)
    write_layout(tmp_path, LAYERS)
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
    with pytest.raises(FormatError, match=r"layout version '2.0.0'"):
        open_layout(tmp_path, platform=AMD64).manifest()


def test_a_changed_manifest_is_noticed(tmp_path: Path) -> None:
    write_layout(tmp_path, LAYERS)
    digest = open_layout(tmp_path, platform=AMD64).manifest().digest
    path = tmp_path / "blobs" / "sha256" / digest.hex
    manifest = json.loads(path.read_text())
    del manifest["layers"][0]
    raw = json.dumps(manifest).encode()
    path.write_bytes(raw.ljust(len(path.read_bytes())))
    with pytest.raises(FormatError, match="has digest"):
        open_layout(tmp_path, platform=AMD64).manifest()


@pytest.mark.parametrize(
    "name", ["v1", "centos:8.3.2011", "platform/mysql:8.0.27", "HOST:5000/team/app:v1", "a/b/c", "a:b:c"]
)
@pytest.mark.parametrize("folder", ["layout", "lay:out", "lay/out"])
def test_an_image_is_found_by_any_name_that_a_layout_gives_it(tmp_path: Path, folder: str, name: str) -> None:
    write_layout(tmp_path / folder, LAYERS, tag="another")
    digest = write_layout(tmp_path / folder, LAYERS[:1], tag=name)
    found, asked = parse_location(f"{tmp_path / folder}:{name}")
    assert (found, asked) == (tmp_path / folder, name)
    assert str(open_layout(found, asked, platform=AMD64).manifest().digest) == digest


def test_location(tmp_path: Path) -> None:
    assert parse_location("/a/b:v1") == (Path("/a/b"), "v1")
    assert parse_location("a/b") == (Path("a/b"), None)
    assert parse_location("/a:5/b") == (Path("/a:5/b"), None)
    (tmp_path / "x:y").mkdir()
    assert parse_location(f"{tmp_path}/x:y") == (tmp_path / "x:y", None)


def test_a_classic_archive(tmp_path: Path) -> None:
    path = tmp_path / "image.tar"
    write_docker_archive(path, LAYERS, tags=["demo:v1", "host/demo:v2"])
    for reference in (None, "v1", "demo:v1", "docker.io/library/demo:v1", "host/demo:v2"):
        assert contents(open_archive(path, reference, platform=AMD64)) == ALL
    first, second = (open_archive(path, platform=AMD64).manifest().digest for _ in range(2))
    assert first == second
    with pytest.raises(ConfigError, match="names 0 images"):
        open_archive(path, "v3", platform=AMD64).manifest()
    with pytest.raises(ConfigError, match="not for linux/arm64"):
        open_archive(path, platform=ARM64).manifest()


def write_archive(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            if isinstance(data, tarfile.TarInfo):
                archive.addfile(data)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_a_classic_archive_with_links_long_names_and_compressed_layers(tmp_path: Path) -> None:
    tars = [layer.tar() for layer in LAYERS]
    long = "x" * 150 + "/layer.tar"
    path = tmp_path / "image.tar"
    names = ["one/layer.tar", long, "three.tar.gz", "again/layer.tar", "hard/layer.tar"]
    config = image_config([*tars, tars[0], tars[1]])
    write_archive(
        path,
        {
            "one/layer.tar": tars[0],
            long: tars[1],
            "three.tar.gz": compressed(tars[2], "gzip"),
            "again/layer.tar": link("again/layer.tar", "../one/layer.tar", tarfile.SYMTYPE),
            "hard/layer.tar": link("hard/layer.tar", long, tarfile.LNKTYPE),
            "config.json": config,
            "manifest.json": json.dumps(
                [{"Config": "config.json", "RepoTags": None, "Layers": names}]
            ).encode(),
        },
    )
    source = open_archive(path, platform=AMD64)
    assert contents(source) == ALL
    assert [layer.compression for layer in source.manifest().layers] == [
        "none",
        "none",
        "gzip",
        "none",
        "none",
    ]


def test_an_archive_of_a_newer_engine_is_a_layout_in_a_tar(tmp_path: Path) -> None:
    digest = write_layout(tmp_path / "layout", LAYERS, compression="gzip")
    path = tmp_path / "image.tar"
    subprocess.run(["tar", "-C", tmp_path / "layout", "-cf", path, "."], check=True)
    source = open_archive(path, platform=AMD64)
    assert str(source.manifest().digest) == digest
    assert contents(source) == ALL


def test_what_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "image.tar"
    with pytest.raises(ConfigError, match="missing"):
        open_archive(path, platform=AMD64)
    with pytest.raises(ConfigError, match="not a regular file"):
        open_archive(tmp_path, platform=AMD64)
    write_docker_archive(path, LAYERS)
    data = path.read_bytes()
    path.write_bytes(gzip.compress(data))
    with pytest.raises(ConfigError, match="gunzip"):
        open_archive(path, platform=AMD64)
    path.write_bytes(LAYERS[0].tar())
    with pytest.raises(ConfigError, match="docker save"):
        open_archive(path, platform=AMD64)
    path.write_bytes(data[: len(data) // 4])
    with pytest.raises(FormatError, match="cut short"):
        open_archive(path, platform=AMD64)
    path.write_bytes(b"hello" * 1000)
    with pytest.raises(FormatError, match="checksum"):
        open_archive(path, platform=AMD64)


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (b"{}", "not a list of images"),
        (b'[1],"more":[2]', "not a list of images"),
        (b'[{"Config":"no.json","Layers":[]}]', "no 'no.json'"),
        (b'[{"Config":"loop","Layers":[]}]', "circle"),
        (b'[{"Config":"config.json","Layers":["../../etc/passwd"]}]', "1 layers but its config 0"),
        (b"[]", "names 0 images"),
    ],
)
def test_a_classic_archive_that_lies(tmp_path: Path, manifest: bytes, words: str) -> None:
    path = tmp_path / "image.tar"
    members: dict[str, bytes | tarfile.TarInfo] = {
        "config.json": image_config([]),
        "loop": link("loop", "loop", tarfile.SYMTYPE),
        "manifest.json": manifest,
    }
    write_archive(path, members)
    with pytest.raises((ConfigError, FormatError), match=words):
        open_archive(path, platform=AMD64).manifest()


def test_a_changed_layer_of_a_classic_archive_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "image.tar"
    write_docker_archive(path, LAYERS)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"333" + bytes(509), b"334" + bytes(509)))
    with pytest.raises(FormatError, match="layer 3 of docker-archive"):
        contents(open_archive(path, platform=AMD64))
