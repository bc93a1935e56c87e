"""A sparse file without a stored byte was refused with the advice to raise a ratio, which nothing met."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.types import ConvertOptions
from pipeline.convert.native import convert_native
from pipeline.errors import FormatError
from pipeline.oci.entry import DEFAULT_LIMITS, Limits
from pipeline.oci.source import ImageSource
from pipeline.squashfs.reader import SquashfsImage
from tests.support.images.hostile_tars import sparse
from tests.support.images.images import image
from tests.support.images.layers import LayerBuilder

SHELL = LayerBuilder().file("bin/sh", b"#!", mode=0o755)


def lastlog(folder: Path, size: int) -> ImageSource:
    """What `useradd` with a large number leaves: a hole as far as that number."""
    return image(folder / "image", [SHELL, sparse(b"var/log/lastlog", size=b"%d" % size, map=b"0,0")])


def converted(source: ImageSource, folder: Path, limits: Limits) -> None:
    output = folder / "x.sqsh"
    convert_native(source, ConvertOptions(), output=output, cache=folder / "cache", limits=limits)
    with SquashfsImage.open(output) as made:
        assert made.lookup(b"var/log/lastlog").size > 1 << 32
    assert output.stat().st_size < 1 << 16


def test_a_few_gigabytes_are_taken_as_they_come(tmp_path: Path) -> None:
    converted(lastlog(tmp_path, 5 << 30), tmp_path, DEFAULT_LIMITS)


def test_a_ratio_takes_what_the_message_says_it_takes(tmp_path: Path) -> None:
    limits = Limits(ratio_floor=1 << 20)
    with pytest.raises(FormatError, match="bytes of holes") as caught:
        converted(lastlog(tmp_path, 5 << 30), tmp_path, limits)
    assert "ratio" in caught.value.hint
    converted(lastlog(tmp_path, 5 << 30), tmp_path, Limits(ratio_floor=1 << 20, max_ratio=20_000_000))
