"""enroot fetched and unpacked an image before anybody had looked at it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pipeline.convert.enroot import _checked, _Handed
from pipeline.errors import FormatError
from pipeline.oci.entry import Limits
from pipeline.oci.layout import LayoutSource
from pipeline.progress import NO_TASK
from tests.support.images.images import image
from tests.support.images.layers import LayerBuilder

LAYERS = [LayerBuilder().file("a", b"1" * 5000), LayerBuilder().file("b", b"2" * 5000)]


@pytest.fixture
def source(tmp_path: Path) -> LayoutSource:
    return image(tmp_path / "image", LAYERS)


def handed(source: Any, folder: Path) -> _Handed:
    folder.mkdir(exist_ok=True)
    return _Handed(source, folder)


def unpacked(path: Path) -> bytes:
    with path.open("rb") as stream:
        return zstandard.ZstdDecompressor().stream_reader(stream).read()


def test_layers_and_config_are_in_its_cache_as_plain_zstd(source: LayoutSource, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    tree = _checked(handed(source, cache), Limits(), NO_TASK)
    assert b"a" in tree
    manifest = source.manifest()
    assert [unpacked(cache / layer.digest.hex) for layer in manifest.layers] == [
        layer.tar() for layer in LAYERS
    ]
    assert unpacked(cache / manifest.config.digest.hex) == source.config().raw
    assert len(list(cache.iterdir())) == 3


def test_of_a_layer_that_is_refused_nothing_stays(source: LayoutSource, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(FormatError, match="more than 3000 bytes"):
        _checked(handed(source, cache), Limits(max_unpacked=3000), NO_TASK)
    assert [path.name for path in cache.iterdir()] == [source.manifest().config.digest.hex]


@pytest.mark.parametrize("damage", [lambda data: data[:40], lambda data: b"", lambda data: data[::-1]])
def test_a_layer_that_went_bad_in_the_cache_is_fetched_again(
    damage: Callable[[bytes], bytes], source: LayoutSource, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    _checked(handed(source, cache), Limits(), NO_TASK)
    layer = cache / source.manifest().layers[1].digest.hex
    layer.write_bytes(damage(layer.read_bytes()))
    _checked(handed(source, cache), Limits(), NO_TASK)
    assert unpacked(layer) == LAYERS[1].tar()
