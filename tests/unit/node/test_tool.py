"""sqshpipe itself on a node: one folder and one command, copied from this installation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.node import tool
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
