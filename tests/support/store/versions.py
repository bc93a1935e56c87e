"""Releases whose files are real: made by native out of layers, so that versions have bytes in common."""

from __future__ import annotations

import random
from pathlib import Path

from pipeline.config.names import check_version
from pipeline.config.types import ConvertOptions
from pipeline.convert.convert import convert
from pipeline.convert.verify import verify
from pipeline.oci.layout import open_layout
from pipeline.oci.platform import Platform
from pipeline.release.publish import publish
from pipeline.store.record import Release
from pipeline.store.store import Store
from tests.support.images.layers import LayerBuilder, write_layout


def layer(prefix: str, megabytes: float, *, seed: int = 0) -> LayerBuilder:
    """A layer with files that do not compress, of so many megabytes together."""
    rng, made = random.Random(f"{prefix}-{seed}"), LayerBuilder()
    for number in range(8):
        made.file(f"{prefix}/{number}", rng.randbytes(int(megabytes * (1 << 20) / 8) + number))
    return made


def release(store: Store, version: str, *layers: LayerBuilder, folder: Path, image: str = "demo") -> Release:
    """Convert, verify and publish the image of those layers; packs are kept in `folder`."""
    place = folder / f"{image}-{version}"
    start = LayerBuilder().dir("bin").file("bin/sh", b"#!\n", mode=0o755)
    write_layout(place, [start, *layers])
    source = open_layout(place, platform=Platform(os="linux", architecture="amd64"))
    file = convert(
        source,
        ConvertOptions(converter="native"),
        output=folder / f"{image}-{version}.sqsh",
        scratch=folder / "scratch",
        cache=folder / "cache",
    )
    scan = {"status": "unscanned", "scanner": "none"}
    return publish(verify(file), store=store, image=image, version=check_version(version), scan=scan)
