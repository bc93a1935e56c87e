"""A thousand layers, each within what one may come to whatever it is stored in, asked for hours."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import pytest

from pipeline.config.types import ConvertOptions
from pipeline.convert.native import convert_native
from pipeline.convert.tree import read_tree
from pipeline.errors import FormatError
from pipeline.oci.entry import Limits
from pipeline.oci.source import ImageSource
from pipeline.progress import NO_TASK
from pipeline.squashfs.reader import SquashfsImage
from tests.support.images.hostile_tars import sparse
from tests.support.images.images import image
from tests.support.images.layers import LayerBuilder

LIMITS = Limits(ratio_floor=1 << 20)


def of_zeros(folder: Path, count: int) -> ImageSource:
    layers = [LayerBuilder().file(f"f{number}", bytes(600_000)) for number in range(count)]
    return image(folder, layers)


def of_a_hole(name: bytes, size: int) -> LayerBuilder:
    return sparse(name, size=b"%d" % size, map=b"0,0")


def converted(source: ImageSource, folder: Path) -> None:
    folder.mkdir()
    convert_native(source, ConvertOptions(), output=folder / "x", cache=folder / "cache", limits=LIMITS)


def test_all_layers_together_are_held_to_the_ratio(tmp_path: Path) -> None:
    source = of_zeros(tmp_path / "image", 4)
    with pytest.raises(FormatError, match="are stored in") as caught:
        read_tree(source, limits=LIMITS, task=NO_TASK)
    assert "ratio" in caught.value.hint
    with pytest.raises(FormatError, match="are stored in"):
        converted(source, tmp_path / "native")


def test_so_are_the_holes_of_all_layers(tmp_path: Path) -> None:
    source = image(tmp_path / "image", [of_a_hole(b"%d" % number, 12 << 20) for number in range(2)])
    with pytest.raises(FormatError, match="are stored in"):
        read_tree(source, limits=LIMITS, task=NO_TASK)
    with pytest.raises(FormatError, match="are stored in"):
        converted(source, tmp_path / "native")


def test_one_such_layer_is_taken_and_so_are_more_beside_a_large_one(tmp_path: Path) -> None:
    assert b"f0" in read_tree(of_zeros(tmp_path / "one", 1), limits=LIMITS, task=NO_TASK)
    layers = [LayerBuilder().file(f"f{number}", bytes(600_000)) for number in range(4)]
    layers.append(LayerBuilder().file("base", bytes(range(256)) * 400))
    source = image(tmp_path / "image", layers, compression=["gzip"] * 4 + ["none"])
    names = {b"f0", b"f1", b"f2", b"f3", b"base"}
    assert names <= set(read_tree(source, limits=LIMITS, task=NO_TASK))
    converted(source, tmp_path / "native")
    with SquashfsImage.open(tmp_path / "native" / "x") as made:
        assert {name: made.lookup(name).size for name in names} == {
            name: 102_400 if name == b"base" else 600_000 for name in names
        }


def test_a_layer_that_lies_about_its_size_buys_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes are claims until a layer was read to its end, so the one that claims most is read first."""
    source = of_zeros(tmp_path / "image", 12)
    *others, last = source.manifest().layers
    lying = (*others, dataclasses.replace(last, size=1 << 40))
    vars(source)["_manifest"] = dataclasses.replace(source.manifest(), layers=lying)
    opened, real = [], source.open_layer

    def open_layer(index: int) -> AbstractContextManager[BinaryIO]:
        opened.append(index)
        return real(index)

    monkeypatch.setattr(source, "open_layer", open_layer)
    with pytest.raises(FormatError, match="ends after"):
        read_tree(source, limits=LIMITS, task=NO_TASK)
    assert opened[0] == 11
