"""Names in the cache folder that are no regular files: none is waited for, followed or believed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config.types import ConvertOptions
from pipeline.convert.blobs import CachedSource
from pipeline.convert.native import convert_native
from pipeline.convert.packing import pack_cache
from pipeline.errors import ToolError
from pipeline.oci.digest import Digest
from pipeline.oci.layout import open_layout
from pipeline.oci.manifest import Manifest, parse_manifest
from pipeline.oci.platform import Platform
from pipeline.progress import NO_TASK
from pipeline.registry.source import RegistrySource
from tests.support.images.layers import LayerBuilder, write_layout
from tests.support.servers.fake_registry import FakeRegistry

PLATFORM = Platform(os="linux", architecture="amd64")
HOW = ["pipe", "symlink to a pipe", "symlink to the bytes", "symlink to nothing", "folder", "socket", "empty"]
NAMES = ["*.pack", "*.pair"]


@pytest.fixture(autouse=True)
def _within_seconds() -> Iterator[None]:
    """An open that waits for ever fails the test instead of stopping all of them."""
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _too_long(*_: object) -> None:
    raise TimeoutError("it waits")


def trap(path: Path, how: str, elsewhere: Path) -> None:
    """Put something else in the place of a file."""
    if path.exists():
        shutil.copy(path, elsewhere / path.name)
        path.unlink()
    if how == "pipe":
        os.mkfifo(path)
    elif how == "symlink to a pipe":
        os.mkfifo(elsewhere / f"{path.name}.pipe")
        path.symlink_to(elsewhere / f"{path.name}.pipe")
    elif how == "symlink to the bytes":
        path.symlink_to(elsewhere / path.name)
    elif how == "symlink to nothing":
        path.symlink_to(elsewhere / "new")
    elif how == "folder":
        path.mkdir()
        (path / "inside").touch()
    elif how == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            here = Path.cwd()
            os.chdir(path.parent)  # the name of a socket is short
            bound.bind(path.name)
            os.chdir(here)
    else:
        path.touch()


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("names", NAMES)
def test_packs_and_notes_that_are_no_files(names: str, how: str, tmp_path: Path) -> None:
    write_layout(tmp_path / "image", [LayerBuilder().dir("a").file("a/b", b"x" * 9000)])
    source, cache = open_layout(tmp_path / "image", platform=PLATFORM), tmp_path / "cache"

    def convert(name: str) -> str:
        return convert_native(source, ConvertOptions(), output=tmp_path / name, cache=cache).sha256

    first = convert("first.sqsh")
    planted = list(pack_cache(cache).folder.glob(names))
    assert planted
    (tmp_path / "elsewhere").mkdir()
    for path in planted:
        trap(path, how, tmp_path / "elsewhere")
    before = {path: path.lstat() for path in (tmp_path / "elsewhere").iterdir()}
    pack_cache(cache).packs()
    if (how, names) == ("folder", "*.pack"):  # what lies in it is not ours to remove
        with pytest.raises(ToolError, match=r"cannot use .*\.pack"):
            convert("second.sqsh")
        assert not (tmp_path / "second.sqsh").exists()
    else:
        assert convert("second.sqsh") == first
    pack_cache(cache).remove_leftovers()
    assert {path: path.lstat() for path in (tmp_path / "elsewhere").iterdir()} == before


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("content", [b"a layer", b""], ids=["a layer", "an empty blob"])
@pytest.mark.parametrize("suffix", ["", ".partial"])
def test_blobs_that_are_no_files(suffix: str, content: bytes, how: str, tmp_path: Path) -> None:
    fake = FakeRegistry()
    digest = Digest.of(content)
    source = _of(fake, content)
    cached = CachedSource(source, tmp_path / "cache")
    cached.folder.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / (digest.hex + suffix)).write_bytes(content)
    trap(cached.folder / (digest.hex + suffix), how, tmp_path / "elsewhere")
    before = {path: path.lstat() for path in (tmp_path / "elsewhere").iterdir()}
    try:
        cached.fetch(NO_TASK)
    except ToolError as error:
        assert digest.hex in error.message or "folder" in how
    else:
        assert (cached.folder / digest.hex).lstat().st_nlink == 1
        assert not (cached.folder / digest.hex).is_symlink()
        with cached.open_layer(0) as layer:
            assert layer.read() == content
    assert {path: path.lstat() for path in (tmp_path / "elsewhere").iterdir()} == before


def test_layers_are_not_kept_where_everybody_can_change_them(tmp_path: Path) -> None:
    cached = CachedSource(_of(FakeRegistry(), b"a layer"), tmp_path / "cache")
    cached.folder.mkdir(parents=True)
    cached.folder.chmod(0o777)
    with pytest.raises(ToolError, match="everybody can put layers into"):
        cached.fetch(NO_TASK)


def _of(fake: FakeRegistry, layer: bytes) -> RegistrySource:
    """An image of this one layer, whose config nobody asks for."""
    fake.blobs[str(Digest.of(layer))] = layer
    kinds = "application/vnd.oci.image."
    described = {"mediaType": f"{kinds}config.v1+json", "digest": str(Digest.of(b"{}")), "size": 2}
    blob = {"mediaType": f"{kinds}layer.v1.tar", "digest": str(Digest.of(layer)), "size": len(layer)}
    table = {
        "schemaVersion": 2,
        "mediaType": f"{kinds}manifest.v1+json",
        "config": described,
        "layers": [blob],
    }
    manifest = parse_manifest(json.dumps(table).encode(), None)
    assert isinstance(manifest, Manifest)
    return RegistrySource(fake.client(), "a/b", manifest)
