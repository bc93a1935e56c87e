from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from pipeline.config.types import ConvertOptions
from pipeline.convert import convert as module
from pipeline.convert.convert import CONVERTER_VERSIONS, choose_converter, convert, convert_key
from pipeline.convert.enroot_program import CannotImport, WouldMisread
from pipeline.convert.interface import Converted
from pipeline.convert.tree import read_tree
from pipeline.errors import ConfigError, FormatError, ToolError
from pipeline.oci.digest import Digest
from pipeline.oci.entry import Limits
from pipeline.oci.source import ImageSource
from pipeline.progress import Task
from tests.support.images.images import image
from tests.support.images.layers import LayerBuilder

SOURCE = Digest.of(b"manifest")
OPTIONS = ConvertOptions()


def test_the_key_depends_on_all_that_changes_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = [
        dataclasses.replace(OPTIONS, zstd_level=4),
        dataclasses.replace(OPTIONS, compressor="lz4"),
        dataclasses.replace(OPTIONS, block_size=1 << 20),
        dataclasses.replace(OPTIONS, keep_owners=True),
        dataclasses.replace(OPTIONS, keep_xattrs=True),
    ]
    keys = {convert_key(SOURCE, options, "native") for options in [OPTIONS, *changed]}
    keys |= {convert_key(Digest.of(b"other"), OPTIONS, "native"), convert_key(SOURCE, OPTIONS, "enroot")}
    monkeypatch.setattr(module, "CONVERTER_VERSIONS", {**CONVERTER_VERSIONS, "native": 99})
    keys.add(convert_key(SOURCE, OPTIONS, "native"))
    monkeypatch.setattr(module, "FORMAT_VERSION", 99)
    keys.add(convert_key(SOURCE, OPTIONS, "native"))
    assert len(keys) == 10
    assert all(len(key) == 64 for key in keys)


def test_the_key_is_the_same_however_the_converter_was_chosen() -> None:
    asked = dataclasses.replace(OPTIONS, converter="native")
    assert convert_key(SOURCE, OPTIONS, "native") == convert_key(SOURCE, asked, "native")


def with_enroot(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = folder / "enroot"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_auto_is_enroot_where_it_is_installed_and_can_read_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert choose_converter(OPTIONS) == "native"
    with_enroot(tmp_path, monkeypatch)
    assert choose_converter(OPTIONS) == "enroot"
    assert choose_converter(OPTIONS, from_registry=False) == "native"
    assert choose_converter(dataclasses.replace(OPTIONS, keep_xattrs=True)) == "native"
    assert choose_converter(dataclasses.replace(OPTIONS, converter="mksquashfs")) == "mksquashfs"


def source(tmp_path: Path) -> ImageSource:
    return image(tmp_path / "image", [LayerBuilder().file("bin/sh", b"#!\n", mode=0o755)])


def writing(data: bytes) -> module.Converter:
    def converter(
        source: ImageSource,
        options: ConvertOptions,
        *,
        output: Path,
        scratch: Path,
        cache: Path,
        limits: Limits,
        task: Task,
    ) -> Converted:
        assert list(scratch.glob("[!.]*")) == []
        (scratch / "work").write_text("x")
        output.write_bytes(data)
        return Converted(tree=read_tree(source, limits=limits, task=task), versions={"tool": "1"})

    return converter


def converted(tmp_path: Path, output: Path, options: ConvertOptions = OPTIONS) -> module.SquashfsFile:
    scratch, cache = tmp_path / "scratch", tmp_path / "cache"
    return convert(source(tmp_path), options, output=output, scratch=scratch, cache=cache)


def test_the_file_appears_complete_and_scratch_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_converter", lambda _name: writing(b"bytes"))
    output = tmp_path / "out" / "x.sqsh"
    output.parent.mkdir()
    output.write_text("old")
    made = converted(tmp_path, output)
    assert output.read_bytes() == b"bytes"
    assert (made.sha256, made.size) == (Digest.of(b"bytes").hex, 5)
    assert made.path == output
    assert made.converter.versions == {"tool": "1"}
    assert made.converter.options["block_size"] == 131072
    assert output.stat().st_mode & 0o777 == 0o644
    assert [file.name for file in output.parent.iterdir()] == ["x.sqsh"]
    assert list((tmp_path / "scratch").iterdir()) == []


def enroot_gives_up(error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_enroot(folder, monkeypatch)
    monkeypatch.setattr(module, "_is_registry", lambda _source: True)
    ways = {"enroot": given_up(error), "native": writing(b"bytes")}
    monkeypatch.setattr(module, "_converter", ways.__getitem__)


def given_up(error: Exception) -> module.Converter:
    def converter(*_arguments: object, output: Path, scratch: Path, **_more: object) -> Converted:
        (scratch / "work").write_text("x")
        output.write_text("half")
        raise error

    return converter


@pytest.mark.parametrize("error", [CannotImport("no"), WouldMisread("no")])
def test_auto_continues_with_native_where_enroot_does_not_do(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enroot_gives_up(error, tmp_path, monkeypatch)
    output = tmp_path / "x.sqsh"
    made = converted(tmp_path, output)
    assert output.read_bytes() == b"bytes"
    assert made.converter.name == "native"
    assert made.convert_key == convert_key(made.source, OPTIONS, "native")
    with pytest.raises(CannotImport if isinstance(error, CannotImport) else FormatError):
        converted(tmp_path, output, dataclasses.replace(OPTIONS, converter="enroot"))


@pytest.mark.parametrize("error", [ToolError("a disk is full"), FormatError("no image")])
def test_auto_ends_where_no_converter_would_do(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enroot_gives_up(error, tmp_path, monkeypatch)
    with pytest.raises(type(error)):
        converted(tmp_path, tmp_path / "x.sqsh")
    assert not (tmp_path / "x.sqsh").exists()


@pytest.mark.parametrize("error", [ToolError("broken"), KeyboardInterrupt()])
def test_a_failure_leaves_what_was_there(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_arguments: object, output: Path, scratch: Path, **_more: object) -> Converted:
        output.write_text("half")
        (scratch / "work").write_text("x")
        raise error

    monkeypatch.setattr(module, "_converter", lambda _name: failing)
    output = tmp_path / "out" / "x.sqsh"
    output.parent.mkdir()
    output.write_text("old")
    with pytest.raises(type(error)):
        converted(tmp_path, output)
    assert output.read_text() == "old"
    assert [file.name for file in output.parent.iterdir()] == ["x.sqsh"]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_folder_that_is_not_there_is_reported_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="no such folder"):
        converted(tmp_path, tmp_path / "missing" / "x.sqsh")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_reported_before_the_work(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    with pytest.raises(ToolError, match="permission denied"):
        converted(tmp_path, folder / "x.sqsh")


def test_an_unknown_converter_is_a_configuration_error(tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, converter="tar2sqfs")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="tar2sqfs"):
        convert(source(tmp_path), options, output=tmp_path / "x", scratch=tmp_path, cache=tmp_path)
