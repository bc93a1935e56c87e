"""Who is to blame for a layer that cannot be read: where it came from, or who made the image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.convert.tree import read_tree
from pipeline.errors import FormatError
from pipeline.oci.entry import Limits
from pipeline.oci.layout import LayoutSource, open_layout
from pipeline.oci.platform import Platform
from pipeline.progress import NO_TASK
from tests.support.images.layers import LayerBuilder, write_layout

AMD64 = Platform.parse("linux/amd64")
NOISE = b"".join(hashlib.sha256(bytes([number])).digest() for number in range(200))
LAYER = LayerBuilder().file("a", NOISE * 40).file("b", b"22" * 5000).file("c", NOISE)


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :]


def written(
    folder: Path, layer: LayerBuilder | bytes, change: Callable[[bytes], bytes], kind: str
) -> LayoutSource:
    """A layout with one layer, whose stored bytes are changed after they were named."""
    write_layout(folder, [layer], compression=kind)
    source = open_layout(folder, platform=AMD64)
    path = folder / "blobs" / "sha256" / source.manifest().layers[0].digest.hex
    path.write_bytes(change(path.read_bytes()))
    return source


@pytest.mark.parametrize("kind", ["gzip", "zstd", "none"])
def test_damage_in_the_middle_of_a_layer_is_reported_by_its_digest(tmp_path: Path, kind: str) -> None:
    """Whatever meets it first: the decompressor, the reader of tars or the diff_id."""
    source = written(tmp_path, LAYER, flipped, kind)
    with pytest.raises(FormatError, match=r"layer 1 of oci:.* has digest sha256:") as caught:
        read_tree(source, task=NO_TASK)
    assert "changed or damaged" in caught.value.hint


@pytest.mark.parametrize("kind", ["gzip", "none"])
def test_a_layer_that_never_was_sound_is_the_images_fault(tmp_path: Path, kind: str) -> None:
    """Its digest is right: there is nothing to be gained by fetching it again."""
    cut = LAYER.tar()[: -len(NOISE) - 1024]
    source = written(tmp_path, cut, lambda stored: stored, kind)
    with pytest.raises(FormatError, match="ends in the middle of a member"):
        read_tree(source, task=NO_TASK)


def test_a_layer_beyond_the_limits_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have gigabytes on a slow line."""
    source = written(tmp_path, LAYER, lambda stored: stored, "gzip")
    real, opened = source.open_layer, []
    monkeypatch.setattr(source, "open_layer", lambda index: opened.append(index) or real(index))
    with pytest.raises(FormatError, match="more than 2 members"):
        read_tree(source, task=NO_TASK, limits=Limits(max_entries=2))
    assert opened == [0]


@pytest.mark.parametrize("padding", [0, 5, 501])
def test_the_last_padding_may_be_missing(tmp_path: Path, padding: int) -> None:
    """Go's archive/tar reads it so, by which engines read; the diff_id says that nothing else is missing."""
    tar = LayerBuilder().file("a", b"1" * 10).tar()[: 512 + 10 + padding]
    source = written(tmp_path, tar, lambda stored: stored, "gzip")
    assert read_tree(source, task=NO_TASK)[b"a"].entry.size == 10
