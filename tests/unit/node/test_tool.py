"""sqshpipe itself on a node: one folder and one command, copied from this installation."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.node import tool
from pipeline.system.mountinfo import MountPoint
from tests.support.store.releases import new_store, publish


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tool.install(tmp_path_factory.mktemp("node") / "opt with blank")


def run(*argv: str | Path, code: int = 0, **environment: str) -> str:
    """A call on a node: nothing of this environment."""
    done = subprocess.run(
        argv, env={"PATH": os.defpath, **environment}, capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr if code else done.stdout


def test_it_needs_nothing_of_this_installation(command: Path, tmp_path: Path) -> None:
    assert "release" in run(command, "--help")
    store = new_store(tmp_path / "store")
    release = publish(store, "v1.0")
    assert run(command, "resolve", "demo", "--store", store.root) == f"{release.link}\n"
    assert "v1.0" in run(command, "list", "--store", store.root)
    for file in command.parents[1].rglob("*"):
        assert not file.is_symlink()
        assert not file.stat().st_mode & 0o022


def test_every_verb_loads_there(command: Path) -> None:
    """Each one's module is imported for its help, with all that it needs at once."""
    for verb in ("release", "convert", "scan", "attest", "report", "node", "cluster", "job", "ecr"):
        assert "Usage" in run(command, verb, "--help")
    heavy = "boto3,docker,httpx,isal,jinja2,pydantic,yaml,rich,securesystemslib,structlog,tenacity,zstandard"
    (lib,) = (command.parents[1] / "lib").iterdir()
    begin = f"import sys; sys.path.insert(0, {str(lib)!r})"
    code = f"{begin}; import {heavy}, typer, cryptography; print(pydantic.__file__)"
    assert run(os.path.realpath(sys.executable), "-ISc", code).startswith(str(lib))


def test_it_can_be_linked_to_repeated_and_replaced(command: Path, tmp_path: Path) -> None:
    link = tmp_path / "sqshpipe"
    link.symlink_to(command)
    assert "release" in run(link, "--help")
    before = sorted((command.parents[1] / "lib").iterdir())
    assert tool.install(command.parents[1]) == command
    assert sorted((command.parents[1] / "lib").iterdir()) == before


def test_an_earlier_installation_goes_when_nothing_uses_it(command: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "prefix"
    assert tool.install(prefix) == prefix / "bin" / "sqshpipe"
    (current,) = (prefix / "lib").iterdir()
    text = (prefix / "bin" / "sqshpipe").read_text()
    names = [f"sqshpipe-0.0.{number}-3.11-0123456{number}" for number in range(3)]
    for name in names:
        (prefix / "lib" / name).mkdir()
        (prefix / "lib" / name / "file").touch()
    (prefix / "lib" / "spank_pyxis.so").touch()
    (prefix / "lib" / "sqshpipe-mine").mkdir()
    argv = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", f"/x/../lib/{names[1]}"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdout is not None
        user.stdout.readline()
        tool.install(prefix)
        left = {each.name for each in (prefix / "lib").iterdir()}
        user.communicate()
    assert left == {current.name, names[1], "spank_pyxis.so", "sqshpipe-mine"}
    assert (prefix / "bin" / "sqshpipe").read_text() == text
    tool.install(prefix)
    assert not (prefix / "lib" / names[1]).exists()


def test_on_shared_storage_an_earlier_installation_stays_for_a_week(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "mount_of", lambda path: MountPoint(point=path, type="lustre"))
    young, old = (tmp_path / "lib" / f"sqshpipe-0.0.{number}-3.11-0123456{number}" for number in (1, 2))
    young.mkdir(parents=True)
    old.mkdir()
    os.utime(old, (0, time.time() - 8 * 24 * 3600))
    tool.install(tmp_path)
    assert young.exists()
    assert not old.exists()
    command = tmp_path / "bin" / "sqshpipe"
    before = f"sqshpipe-0.0.3-3.11-{'0' * 8}"
    (tmp_path / "lib" / before).mkdir()
    os.utime(tmp_path / "lib" / before, (0, 0))
    command.write_text(f"lib=../lib/{before}\n")
    tool.install(tmp_path)
    assert (tmp_path / "lib" / before).exists(), "it was in use until now"


def test_hooks_name_the_command_of_the_installation_that_writes_them(command: Path, tmp_path: Path) -> None:
    run(command, "node", "hooks", "-o", tmp_path / "hooks")
    for name in ("prolog", "epilog"):
        assert f"'{command}'" in (tmp_path / "hooks" / name).read_text()
    assert tool.place() == tool.COMMAND


def test_another_python_is_one_sentence(command: Path, tmp_path: Path) -> None:
    other = tmp_path / "bin" / "sqshpipe"
    other.parent.mkdir()
    text = command.read_text().replace(os.path.realpath(sys.executable), "/no/python")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    other.write_text(text.replace(version, "9.9").replace(version.replace(".", ", "), "9, 9"))
    other.chmod(0o755)
    said = run(other, "--version", code=3)
    assert "no Python 9.9 is on" in said
    assert "Traceback" not in said


def test_it_does_not_go_into_the_store(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be installed into the store"):
        tool.install(tmp_path / "store" / "tools", store=tmp_path / "store")


def test_a_step_takes_the_tool_of_the_node_where_it_is(tmp_path: Path) -> None:
    there = tmp_path / "sqshpipe"
    argv = tool.on_node(["--help"], there)
    assert "release" in run(*argv)  # by the path of this installation
    there.write_text('#!/bin/sh\necho "the node\'s: $*"\n')
    there.chmod(0o755)
    assert run(*argv) == "the node's: --help\n"
    assert run(*tool.on_node(["a b", "--", "$c"], there)) == "the node's: a b -- $c\n"
