"""Environment, entrypoint, command, working directory: what `run` gives a program is what Docker gives it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.engine import PrivateEngine
from pipeline.config.types import ConvertOptions
from pipeline.convert.convert import convert
from pipeline.convert.sources import opened_source
from pipeline.oci.platform import Platform
from tests.support.images import small_root
from tests.support.images.layers import LayerBuilder, write_docker_archive
from tests.support.images.variables import CARRIED, LOST

pytestmark = pytest.mark.needs("root", "docker", "dockerd", "gcc", "mksquashfs")
SQSHPIPE = [sys.executable, "-m", "pipeline"]
HOST = {"HOME": "/root/of the host", "X": "other", "FOREIGN": "1"}
Started = tuple[bytes, list[bytes], dict[bytes, bytes]]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return small_root.static_program(tmp_path_factory.mktemp("program")).read_bytes()


@pytest.fixture(autouse=True)
def _node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SQSHPIPE_NODE_DIR", str(tmp_path / "node"))
    yield
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


def _archive(folder: Path, program: bytes, config: dict[str, Any], *, shell: bool) -> Path:
    """An image in the form of `docker save`: the program, and a shell with what it loads."""
    tree = small_root.write(folder / "tree", shell=shell)
    layer = LayerBuilder().file("static", program, mode=0o755)
    for path in sorted(tree.rglob("*")):
        if path.is_file() and "etc" not in path.parts:
            layer.file(str(path.relative_to(tree)), path.read_bytes(), mode=0o755)
    file = folder / "image.tar"
    write_docker_archive(file, [layer], config=config, tags=["started:latest"])
    return file


def _by_docker(engine: PrivateEngine, archive: Path, *words: str) -> Started:
    docker = ["docker", "--host", engine.host]
    subprocess.run([*docker, "load", "-i", archive], check=True, capture_output=True, timeout=120)
    command = [*docker, "run", "--rm", "--network", "none", "started:latest", *words]
    done = subprocess.run(command, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return small_root.printed(done.stdout)


def _by_run(archive: Path, folder: Path, *words: str, **more: str) -> Started:
    file = folder / "image.sqsh"
    platform = Platform(os="linux", architecture="amd64")
    with opened_source(f"docker-archive:{archive}", platform, scratch=folder) as source:
        convert(
            source, ConvertOptions(converter="native"), output=file, scratch=folder, cache=folder / "cache"
        )
    done = subprocess.run(
        [*SQSHPIPE, "run", str(file), *words],
        env={**os.environ, **HOST, **more},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return small_root.printed(done.stdout)


@pytest.mark.parametrize("shell", [True, False], ids=["by a shell", "without a shell"])
def test_every_variable_has_dockers_value(
    shell: bool, engine: PrivateEngine, program: bytes, tmp_path: Path
) -> None:
    items = [f"T_{number}={item.partition('=')[2]}" for number, item in enumerate(CARRIED)]
    twice = ["T_TWICE=1", "T_TWICE=2", "NOTHING"]
    archive = _archive(tmp_path, program, {"Env": [*items, *LOST, *twice], "Cmd": ["/static"]}, shell=shell)
    _, _, given = _by_docker(engine, archive)
    _, _, ours = _by_run(archive, tmp_path, "--", "/static")
    names = [item.partition("=")[0].encode() for item in (*items, *twice)]
    assert {name: ours.get(name) for name in names} == {name: given.get(name) for name in names}
    lost = [item.encode().partition(b"=") for item in LOST]
    assert all(given[name] == value and ours.get(name) != value for name, _, value in lost), "named as losses"


STARTS: dict[str, dict[str, Any]] = {
    "entrypoint and command": {"Entrypoint": ["/static", "a b"], "Cmd": ["c", "it's $(id)"]},
    "entrypoint alone": {"Entrypoint": ["/static", "", "-n"]},
    "command alone": {"Cmd": ["/static", "two\nlines", '"', "\\"]},
    "an entrypoint of one empty word": {"Entrypoint": [""], "Cmd": ["/static", "x"]},
    "other languages": {"Cmd": ["/static", "caf\u00e9", "\U0001f600"], "WorkingDir": "/\u00fcber"},
    "a working directory": {"Cmd": ["/static"], "WorkingDir": "/new/it's a $HOME `id`"},
    "a relative program": {"Cmd": ["./static"], "WorkingDir": "/"},
    "a program in PATH": {"Cmd": ["static"], "Env": ["PATH=/nowhere:/"]},
}


@pytest.mark.parametrize("shell", [True, False], ids=["by a shell", "without a shell"])
@pytest.mark.parametrize("name", STARTS)
def test_what_an_image_starts_is_what_docker_starts(
    name: str, shell: bool, engine: PrivateEngine, program: bytes, tmp_path: Path
) -> None:
    archive = _archive(tmp_path, program, STARTS[name], shell=shell)
    folder, words, _ = _by_docker(engine, archive)
    assert _by_run(archive, tmp_path)[:2] == (folder, words)
    assert _by_run(archive, tmp_path, PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", LC_ALL="C")[:2] == (
        folder,
        words,
    )


@pytest.mark.parametrize("shell", [True, False], ids=["by a shell", "without a shell"])
@pytest.mark.parametrize(
    "name", ["entrypoint and command", "command alone", "an entrypoint of one empty word"]
)
def test_arguments_take_the_place_of_the_command(
    name: str, shell: bool, engine: PrivateEngine, program: bytes, tmp_path: Path
) -> None:
    archive = _archive(tmp_path, program, STARTS[name], shell=shell)
    words = ("/static", "y", "z w")
    docker = _by_docker(engine, archive, *words)
    assert _by_run(archive, tmp_path, "--entrypoint", "--", *words)[:2] == docker[:2]
    assert _by_run(archive, tmp_path, "--", *words)[1] == [b"y", b"z w"]


def test_an_image_that_names_nothing_and_has_no_shell_says_so(program: bytes, tmp_path: Path) -> None:
    archive = _archive(tmp_path, program, {}, shell=False)
    with pytest.raises(AssertionError, match="names no command"):
        _by_run(archive, tmp_path)


def test_convert_says_why_and_leaves_no_file(program: bytes, tmp_path: Path) -> None:
    archive = _archive(tmp_path, program, {"Cmd": ["/static"]}, shell=False)
    output = tmp_path / "out" / "image.sqsh"
    output.parent.mkdir()
    for before in (None, b"an older file"):
        if before is not None:
            output.write_bytes(before)
        more = ["--force"] if before else []
        command = [*SQSHPIPE, "convert", f"docker-archive:{archive}", "-o", str(output), *more]
        environment = {**os.environ, "SQSHPIPE_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 7, done.stderr
        assert "no /bin/sh" in done.stderr
        left = [path for path in output.parent.iterdir() if path != output]
        assert left == []
        assert (output.read_bytes() if output.exists() else None) == before


def test_convert_warns_of_what_the_file_cannot_carry(program: bytes, tmp_path: Path) -> None:
    archive = _archive(tmp_path, program, {"Env": [*CARRIED, *LOST], "Cmd": ["/static"]}, shell=True)
    output = tmp_path / "image.sqsh"
    command = [*SQSHPIPE, "convert", f"docker-archive:{archive}", "-o", str(output)]
    environment = {**os.environ, "SQSHPIPE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "differs from what Docker gives" in line]
    assert len(warnings) == len(LOST), done.stderr
    assert "A-B" in done.stderr
    assert "T_A" not in "".join(warnings)
