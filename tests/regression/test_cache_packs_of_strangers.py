"""A pack that anybody had put into a cache folder open to all was published as if it were the layer: the tree
that verification compares with came out of the same pack.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.config.types import ConvertOptions
from pipeline.convert.native import convert_native
from pipeline.errors import ToolError
from tests.support.images.images import image
from tests.support.images.layers import LayerBuilder


def converted(tmp_path: Path, cache: Path) -> None:
    source = image(tmp_path / "image", [LayerBuilder().file("bin/sh", b"#!\n", mode=0o755)])
    convert_native(source, ConvertOptions(), output=tmp_path / "x.sqsh", cache=cache)


def test_a_folder_that_all_may_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache" / "packs").mkdir(parents=True)
    (tmp_path / "cache" / "packs").chmod(0o1777)
    with pytest.raises(ToolError, match="everybody can put layer packs") as caught:
        converted(tmp_path, tmp_path / "cache")
    assert "SQSHPIPE_CACHE" in caught.value.hint
    (tmp_path / "cache" / "packs").chmod(0o755)
    converted(tmp_path, tmp_path / "cache")


@pytest.mark.skipif(os.geteuid() != 0, reason="making somebody else's folder needs root")
def test_a_folder_that_somebody_made_where_all_may_make_one_is_refused(tmp_path: Path) -> None:
    cache = tmp_path / "tmp"
    cache.mkdir()
    cache.chmod(0o1777)
    (cache / "packs").mkdir(mode=0o755)
    os.chown(cache / "packs", 65534, 65534)
    with pytest.raises(ToolError, match="everybody can put layer packs"):
        converted(tmp_path, cache)
    cache.chmod(0o755)  # a cache of another's that was named on purpose
    converted(tmp_path, cache)


def test_ours_is_closed_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        converted(tmp_path, tmp_path / "cache")
        converted(tmp_path / "again", tmp_path / "cache")
    finally:
        os.umask(before)
    assert (tmp_path / "cache" / "packs").stat().st_mode & 0o777 == 0o755
