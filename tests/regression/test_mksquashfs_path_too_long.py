"""A path that fits an image but not below scratch made mksquashfs fail with its own words."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.types import ConvertOptions
from pipeline.convert.convert import convert
from pipeline.errors import FormatError
from tests.support.images.images import image
from tests.support.images.layers import LayerBuilder


@pytest.mark.needs("mksquashfs")
def test_the_longest_path_is_refused_before_mksquashfs_is_run(tmp_path: Path) -> None:
    path = b"/".join([b"d" * 250] * 16) + b"/" + b"f" * 79
    source = image(tmp_path / "image", [LayerBuilder().file(path)])
    with pytest.raises(FormatError, match="mksquashfs takes") as caught:
        convert(
            source,
            ConvertOptions(converter="mksquashfs"),
            output=tmp_path / "x.sqsh",
            scratch=tmp_path / "scratch",
            cache=tmp_path / "cache",
        )
    assert "native" in caught.value.hint
