"""A line breaks, and the rest of the layer has wrong bytes: one exit code, whichever converter it is."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from demo.registry import PrivateRegistry
from pipeline.config.types import ConvertOptions
from pipeline.convert.convert import convert
from pipeline.convert.sources import open_registry
from pipeline.errors import RegistryError
from pipeline.oci.reference import Reference
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials
from tests.support.images import LINUX, image
from tests.support.layers import LayerBuilder
from tests.support.registry import Fault, FaultyProxy

NOISE = random.Random(3).randbytes(3_000_000)
LAYER = LayerBuilder().dir("bin").file("bin/sh", b"#!\n", mode=0o755).file("noise", NOISE)


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.needs("docker-registry", "mksquashfs")
@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
@pytest.mark.parametrize("converter", ["mksquashfs", "native"])
def test_it_is_the_registrys_fault(
    converter: str, compression: str, registry: PrivateRegistry, tmp_path: Path
) -> None:
    layout = image(tmp_path / "image", [LAYER], compression=compression)
    manifest, repository = layout.manifest(), f"resumed-{converter}-{compression}"
    known = Credentials(username=registry.username, password=registry.password)
    [layer] = manifest.layers
    with FaultyProxy(registry.address) as proxy:
        proxy.faults = [
            Fault(method="GET", path=layer.digest.hex, cut_response=1_500_000),
            Fault(method="GET", path=layer.digest.hex, change=flipped),
        ]
        with RegistryClient(registry.address, credentials=lambda _host: known) as direct:
            for blob in (manifest.config, layer):
                with (tmp_path / "image" / "blobs" / "sha256" / blob.digest.hex).open("rb") as stream:
                    direct.push_blob(repository, blob, stream)
            direct.put_manifest(repository, "v1", manifest.raw, manifest.media_type)
        with RegistryClient(proxy.address, credentials=lambda _host: known) as client:
            reference = Reference(registry=client.host, repository=repository, tag="v1")
            source = open_registry(reference, LINUX, lambda _host: client)
            options = ConvertOptions(converter=converter)  # type: ignore[arg-type]
            with pytest.raises(RegistryError, match="gives other bytes"):
                convert(
                    source,
                    options,
                    output=tmp_path / "x.sqsh",
                    scratch=tmp_path / "scratch",
                    cache=tmp_path / "cache",
                )
        assert not any(fault.times for fault in proxy.faults), "both faults were met"
