"""A device or attribute that mksquashfs has no way to write was reported as a failed tool, exit code 3."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.types import ConvertOptions
from pipeline.convert.convert import convert
from pipeline.errors import FormatError
from tests.support.images.images import image
from tests.support.images.layers import LayerBuilder

pytestmark = pytest.mark.needs("mksquashfs")


def refused(layer: LayerBuilder, tmp_path: Path, *, keep_xattrs: bool = False) -> FormatError:
    """What the image is refused with, before anything of it is unpacked."""
    with pytest.raises(FormatError) as caught:
        convert(
            image(tmp_path / "image", [layer]),
            ConvertOptions(converter="mksquashfs", keep_xattrs=keep_xattrs),
            output=tmp_path / "x.sqsh",
            scratch=tmp_path / "scratch",
            cache=tmp_path / "cache",
        )
    assert caught.value.exit_code == 6
    assert not (tmp_path / "x.sqsh").exists()
    assert list((tmp_path / "scratch").iterdir()) == []
    return caught.value


def test_a_device_with_a_newline_in_its_name(tmp_path: Path) -> None:
    error = refused(LayerBuilder().device("lib/a\nb", 1, 3), tmp_path)
    assert "newline in its name" in error.message
    assert "native" in error.hint


@pytest.mark.needs("root")
@pytest.mark.parametrize("name", ["system.posix_acl_access", "nobody.knows"])
def test_an_attribute_that_squashfs_lacks(name: str, tmp_path: Path) -> None:
    error = refused(LayerBuilder().file("f", b"x", xattrs={name: b"v"}), tmp_path, keep_xattrs=True)
    assert name in error.message
    assert "without keeping extended attributes" in error.hint
