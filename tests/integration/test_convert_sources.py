"""From each kind of source to a .sqsh, with a real registry and a real Docker Engine."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

from demo.engine import PrivateEngine
from demo.registry import PrivateRegistry
from pipeline.config.types import ConvertOptions
from pipeline.convert.convert import SquashfsFile, convert
from pipeline.convert.sources import open_registry, opened_source
from pipeline.convert.verify import verify
from pipeline.errors import RegistryError
from pipeline.oci.reference import Reference
from pipeline.oci.source import ImageSource
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials
from tests.support.images import LINUX, image
from tests.support.layers import LayerBuilder

pytestmark = pytest.mark.needs("mksquashfs")
BASE = LayerBuilder().dir("bin").file("bin/sh", b"#!\n", mode=0o755)
UPPER = LayerBuilder().dir("d").file("d/f", bytes(range(256)) * 4000).symlink("l", "d/f")


def converted(source: ImageSource, folder: Path, converter: str) -> SquashfsFile:
    return convert(
        source,
        ConvertOptions(converter=converter),  # type: ignore[arg-type]
        output=folder / f"{converter}.sqsh",
        scratch=folder / "scratch",
        cache=folder / "cache",
    )


@pytest.fixture
def client(registry: PrivateRegistry) -> Iterator[RegistryClient]:
    found = Credentials(username=registry.username, password=registry.password)
    with RegistryClient(registry.address, credentials=lambda _host: found) as made:
        yield made


@pytest.mark.needs("docker-registry")
@pytest.mark.parametrize("converter", ["mksquashfs", "native"])
def test_a_registry(converter: str, client: RegistryClient, tmp_path: Path) -> None:
    layout = image(tmp_path / "image", [BASE, UPPER], compression=["gzip", "zstd"])
    manifest, repository = layout.manifest(), f"sources-{converter}"
    for blob in (manifest.config, *manifest.layers):
        with (tmp_path / "image" / "blobs" / "sha256" / blob.digest.hex).open("rb") as stream:
            client.push_blob(repository, blob, stream)
    client.put_manifest(repository, "v1", manifest.raw, manifest.media_type)
    reference = Reference(registry=client.host, repository=repository, tag="v1")
    source = open_registry(reference, LINUX, lambda _host: client)
    first = converted(source, tmp_path, converter)
    verify(first)
    assert first.source == manifest.digest
    if converter == "mksquashfs":
        blobs = {file.name for file in (tmp_path / "cache" / "blobs").iterdir()}
        assert blobs == {layer.digest.hex for layer in manifest.layers}
        (tmp_path / "cache" / "blobs" / manifest.layers[0].digest.hex).write_bytes(b"damaged")
    assert converted(source, tmp_path, converter).sha256 == first.sha256
    with pytest.raises(RegistryError, match="v2"):
        open_registry(reference.with_tag("v2"), LINUX, lambda _host: client)


@pytest.mark.needs("docker", "dockerd", "root")
@pytest.mark.parametrize("converter", ["mksquashfs", "native"])
def test_the_docker_engine(
    converter: str, engine: PrivateEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine.host)
    tar = BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name, data, mode in (("bin/sh", b"#!\n", 0o755), ("srv/app", b"x" * 300_000, 0o644)):
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = len(data), mode, 1_700_000_000
            archive.addfile(member, BytesIO(data))
    name = f"sources-{converter}:v1"
    subprocess.run(["docker", "import", "-", name], input=tar.getvalue(), check=True, capture_output=True)
    with opened_source(f"docker-daemon:{name}", LINUX, scratch=tmp_path / "scratch") as source:
        made = converted(source, tmp_path, converter)
        verify(made)
    assert made.tree[b"srv/app"].entry.size == 300_000
    assert list((tmp_path / "scratch").iterdir()) == []
