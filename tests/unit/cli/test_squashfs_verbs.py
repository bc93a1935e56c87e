"""``ls``, ``cat`` and ``cache`` on a small native image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.config.types import ConvertOptions
from pipeline.convert.native import convert_native
from pipeline.errors import ConfigError
from pipeline.oci.layout import open_layout
from pipeline.oci.platform import Platform
from tests.support.command_line import app
from tests.support.images.layers import LayerBuilder, write_layout


@pytest.fixture
def image(tmp_path: Path) -> Path:
    layer = LayerBuilder().dir("usr").dir("usr/bin").file("usr/bin/sh", b"#!\xff\n", mode=0o755)
    layer.symlink("bin", "usr/bin").symlink("loop", "loop").symlink("up", "../../usr/../bin")
    write_layout(tmp_path / "image", [layer], config={"Env": ["A=b"]})
    convert_native(
        open_layout(tmp_path / "image", platform=Platform(os="linux", architecture="amd64")),
        ConvertOptions(),
        output=tmp_path / "made.sqsh",
        cache=tmp_path / "cache",
    )
    return tmp_path / "made.sqsh"


def run(*argv: object, **env: str) -> bytes:
    result = CliRunner().invoke(app, [str(word) for word in argv], env=env)
    if result.exception is not None:
        raise result.exception
    return result.stdout_bytes


def test_ls_shows_a_folder(image: Path) -> None:
    lines = run("squashfs", "ls", image, "/").decode().splitlines()
    assert [line.split()[-1] for line in lines if "->" not in line] == ["etc", "usr"]
    assert any(line.startswith("lrwxrwxrwx 0:0 ") and line.endswith("bin -> usr/bin") for line in lines)
    assert (
        run("squashfs", "ls", image, "up").decode().splitlines()
        == run("squashfs", "ls", image, "/usr/bin").decode().splitlines()
    )


def test_ls_recursive_for_machines(image: Path) -> None:
    found = {entry["path"]: entry for entry in json.loads(run("squashfs", "ls", image, "-R", "--json"))}
    assert found["usr/bin/sh"]["mode"] == "0755"
    assert found["bin"]["target"] == "usr/bin"
    assert found["etc/rc"]["kind"] == "file"


def test_cat_follows_links_and_keeps_bytes(image: Path) -> None:
    assert run("squashfs", "cat", image, "/bin/sh") == b"#!\xff\n"
    assert run("squashfs", "cat", image, "etc/environment") == b"A=b\n"


@pytest.mark.parametrize("path", ["nothing", "loop", "usr", "bin/sh/more"])
def test_cat_of_what_is_no_file_says_so(image: Path, path: str) -> None:
    with pytest.raises(ConfigError):
        run("squashfs", "cat", image, path)


def test_cache_shows_and_trims(image: Path) -> None:
    env = {"SQSHPIPE_CACHE": str(image.parent / "cache")}
    shown = json.loads(run("cache", "list", "--json", **env))
    assert [pack["complete"] for pack in shown["packs"]] == [True]
    assert json.loads(run("cache", "prune", "--max-age", "1d", "--json", **env))["removed"] == []
    assert b"1 packs" in run("cache", "list", **env)
    assert len(json.loads(run("cache", "prune", "--max-size", "0", "--json", **env))["removed"]) == 1
    assert json.loads(run("cache", "list", "--json", **env))["packs"] == []


@pytest.mark.parametrize("argv", [("--max-size", "lots"), ("--max-age", "5"), ("--max-size", "-1")])
def test_cache_refuses_what_is_no_size(tmp_path: Path, argv: tuple[str, str]) -> None:
    with pytest.raises((ConfigError, SystemExit)):
        run("cache", "prune", *argv, SQSHPIPE_CACHE=str(tmp_path))
