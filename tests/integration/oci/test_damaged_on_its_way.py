"""A registry, or a proxy before it, that damages a layer is reported as that, wherever it is noticed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from demo.registry import PrivateRegistry
from pipeline.convert.tree import read_tree
from pipeline.errors import RegistryError
from pipeline.oci.layout import open_layout
from pipeline.oci.platform import Platform
from pipeline.progress import NO_TASK
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials
from pipeline.registry.source import RegistrySource
from tests.support.images.layers import LayerBuilder, write_layout
from tests.support.images.pushed import push_bytes
from tests.support.servers.registry import Fault, FaultyProxy

AMD64 = Platform.parse("linux/amd64")
LAYER = LayerBuilder()
for number in range(90):  # text: one bit of its codes moves all that follows
    LAYER.file(f"{number:02}", random.Random(number).randbytes(60_000).hex().encode())


def flipped(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 16]) + body[middle + 1 :]


@pytest.mark.needs("docker-registry")
@pytest.mark.parametrize("kind", ["gzip", "zstd", "none"])
def test_a_bit_flipped_in_the_middle(registry: PrivateRegistry, tmp_path: Path, kind: str) -> None:
    """Of a blob that is large enough to be read from the connection itself."""
    write_layout(tmp_path, [LAYER], compression=kind)
    manifest = open_layout(tmp_path, platform=AMD64).manifest()
    login = Credentials(username=registry.username, password=registry.password)
    name = f"damaged/{kind}"
    with (
        FaultyProxy(registry.address) as proxy,
        RegistryClient(proxy.address, credentials=lambda _: login) as client,
    ):
        for blob in (manifest.config, *manifest.layers):
            data = (tmp_path / "blobs" / "sha256" / blob.digest.hex).read_bytes()
            push_bytes(client, name, blob.media_type, data)
        client.put_manifest(name, "v1", manifest.raw, manifest.media_type)
        source = RegistrySource(client, name, manifest)
        assert source.config().diff_ids
        assert manifest.layers[0].size > 4 << 20
        path = f"/blobs/{manifest.layers[0].digest}"
        proxy.faults.append(Fault(method="GET", path=path, times=99, change=flipped))
        with pytest.raises(RegistryError, match="gives other bytes"):
            read_tree(source, task=NO_TASK)
        proxy.faults.clear()
        assert b"89" in read_tree(source, task=NO_TASK)
