"""mksquashfs gives each name of a symlink an inode of its own, which verification took for a difference."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.types import ConvertOptions
from pipeline.convert.convert import convert
from pipeline.convert.verify import verify
from tests.support.images.images import image
from tests.support.images.layers import LayerBuilder


@pytest.mark.needs("mksquashfs")
@pytest.mark.parametrize("converter", ["mksquashfs", "native"])
def test_an_image_with_two_names_for_one_symlink_converts(converter: str, tmp_path: Path) -> None:
    layer = LayerBuilder().dir("bin").file("bin/sh", b"#!\n", mode=0o755)
    layer.symlink("s", "bin/sh").hardlink("h", "s").file("f", b"1").hardlink("g", "f")
    made = convert(
        image(tmp_path / "image", [layer]),
        ConvertOptions(converter=converter),  # type: ignore[arg-type]
        output=tmp_path / "x.sqsh",
        scratch=tmp_path / "scratch",
        cache=tmp_path / "cache",
    )
    assert "tree" in verify(made).checks
