"""How fast native was here is remembered, and named when `auto` runs enroot."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.config.types import ConvertOptions
from pipeline.convert import convert as converting
from pipeline.convert import measured
from pipeline.convert.enroot_program import CannotImport
from pipeline.convert.interface import Converted
from pipeline.oci.source import ImageSource
from tests.support.images.images import image
from tests.support.images.layers import LayerBuilder


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> ImageSource:
    start = LayerBuilder().dir("bin").file("bin/sh", b"#!\n", mode=0o755)
    data = LayerBuilder().file("opt/a", random.Random(1).randbytes(9 << 20))
    return image(tmp_path_factory.mktemp("image"), [start, data])


def run(source: ImageSource, folder: Path, converter: str, name: str = "out.sqsh") -> None:
    options = ConvertOptions(converter=converter)  # type: ignore[arg-type]
    converting.convert(
        source, options, output=folder / name, scratch=folder / "scratch", cache=folder / "cache"
    )


def test_a_conversion_without_packs_is_measured_and_one_with_packs_is_not(
    big: ImageSource, tmp_path: Path
) -> None:
    run(big, tmp_path, "native")
    first = (tmp_path / "cache" / "native.json").read_text()
    size = sum(layer.size for layer in big.manifest().layers)
    seconds = measured.expected(tmp_path / "cache", size)
    assert seconds is not None
    assert 0 < seconds < 60
    assert measured.expected(tmp_path / "cache", 2 * size) == pytest.approx(2 * seconds)
    run(big, tmp_path, "native", "again.sqsh")
    assert (tmp_path / "cache" / "native.json").read_text() == first


@pytest.mark.parametrize("known", [True, False])
def test_auto_prints_one_line_where_it_was_measured(
    big: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    (tmp_path / "cache").mkdir()
    if known:
        measured.note(tmp_path / "cache", seconds=28, size=sum(each.size for each in big.manifest().layers))

    def enroot(*_: object, **__: object) -> Converted:
        raise CannotImport("not this image")

    real = converting._converter
    monkeypatch.setattr(converting, "choose_converter", lambda *_, **__: "enroot")
    monkeypatch.setattr(converting, "_converter", lambda name: enroot if name == "enroot" else real(name))
    lines: list[str] = []
    log = SimpleNamespace(info=lambda line, **_: lines.append(line), warning=lambda *_, **__: None)
    monkeypatch.setattr(converting, "log", log)
    run(big, tmp_path, "auto")
    found = [line for line in lines if "measured on this host" in line]
    assert len(found) == known
    assert all("native takes about 28 s" in line for line in found)


NO_MEASURES = (
    "",
    "[]",
    "{",
    '{"seconds": 1}',
    '{"seconds": "x", "size": 9000000}',
    '{"seconds": -1, "size": 99999999}',
    '{"seconds": NaN, "size": 99999999}',
    '{"seconds": 5, "size": 0}',
    '{"seconds": 1e999, "size": 99999999}',
    "x" * 2000,
)


@pytest.mark.parametrize("text", NO_MEASURES)
def test_what_is_not_a_measure_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / "native.json").write_text(text)
    assert measured.expected(tmp_path, 1 << 30) is None


def test_small_images_and_folders_that_cannot_be_written_are_not_noted(tmp_path: Path) -> None:
    measured.note(tmp_path, seconds=1, size=1 << 20)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    measured.note(tmp_path / "file", seconds=1, size=1 << 30)
