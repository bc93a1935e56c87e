"""The squashfuse of sqshpipe: beside others, never taken for one of them, and what node check says of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.errors import ToolError
from pipeline.node import job_mount, shim
from pipeline.node.install import ImporterSettings, install
from pipeline.slurm import client


def other(folder: Path, text: str = '#!/bin/sh\necho other "$@"\n') -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "squashfuse"
    program.write_text(text)
    program.chmod(0o755)
    return program


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say() -> None:
    done = subprocess.run(
        ["shellcheck", "-s", "sh", "-"], input=shim.script(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout


def test_it_is_installed_again_but_never_over_another_squashfuse(tmp_path: Path) -> None:
    made = shim.install(tmp_path / "prefix")
    assert shim.install(tmp_path / "prefix") == made
    assert shim.is_shim(made)
    foreign = other(tmp_path / "foreign" / "sbin")
    assert not shim.is_shim(foreign)
    with pytest.raises(ToolError, match="not of sqshpipe"):
        shim.install(tmp_path / "foreign")
    assert "other" in foreign.read_text()


@pytest.mark.parametrize("words", [["--version"], ["-f", "-o", "uid=0,gid=0", "/x/y.sqsh", "/mnt"], []])
def test_it_becomes_the_next_squashfuse_whatever_is_asked(words: list[str], tmp_path: Path) -> None:
    """Two of it in PATH, and links to it, do not call each other for ever."""
    first, second = shim.install(tmp_path / "one"), shim.install(tmp_path / "two")
    link = tmp_path / "links" / "squashfuse"
    link.parent.mkdir()
    link.symlink_to(second)
    real = other(tmp_path / "real")
    folders = [str(each.parent) for each in (link, first, second, real)]
    path = ":".join([*folders, "/usr/bin", "/bin"])
    done = subprocess.run(
        ["squashfuse", *words], env={"PATH": path}, capture_output=True, text=True, timeout=20
    )
    assert done.stdout.split() == ["other", *words]


def test_the_first_in_path_is_found(tmp_path: Path) -> None:
    made = shim.install(tmp_path / "one")
    later = other(tmp_path / "two")
    assert shim.first_in(f"{tmp_path}/none::{made.parent}:{later.parent}") == made
    assert shim.first_in(f"{tmp_path}/none") is None


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The importer's settings on a node where all is in order."""
    (tmp_path / "store").mkdir()
    program = install(
        ImporterSettings(store=tmp_path / "store", state=tmp_path / "state"), tmp_path / "prefix"
    )
    made = shim.install(tmp_path / "prefix")
    monkeypatch.setattr(job_mount, "_path_of_slurmd", lambda: str(made.parent))
    monkeypatch.setattr(client, "config", lambda: {"Prolog": "/etc/slurm/prolog"})
    monkeypatch.setattr(os, "uname", lambda: Uname("6.8.0-1021-aws"))
    return program.with_name("pyxis-importer.json")


class Uname:
    machine, nodename = "x86_64", "node"

    def __init__(self, release: str) -> None:
        self.release = release


def test_a_node_that_makes_kernel_mounts_says_so(settings: Path) -> None:
    well, text = job_mount.report(settings)
    assert well
    assert "the kernel serves jobs whose comment names the digest" in text


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        ("no settings", "is missing"),
        ("old kernel", "Linux 5.15.0-1071-aws shows no squashfs"),
        ("another squashfuse", "not that of sqshpipe"),
        ("no squashfuse", "is missing, not that of sqshpipe"),
        ("no prolog", "names no Prolog"),
        ("bad setting", "mounts is neither kernel nor fuse"),
    ],
)
def test_what_lacks_is_named(
    fault: str, word: str, settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "no settings":
        settings.unlink()
    elif fault == "old kernel":
        monkeypatch.setattr(os, "uname", lambda: Uname("5.15.0-1071-aws"))
    elif fault == "another squashfuse":
        program = other(tmp_path / "other")
        monkeypatch.setattr(job_mount, "_path_of_slurmd", lambda: str(program.parent))
    elif fault == "no squashfuse":
        monkeypatch.setattr(job_mount, "_path_of_slurmd", lambda: "/nowhere")
    elif fault == "no prolog":
        monkeypatch.setattr(client, "config", lambda: {"Prolog": "(null)"})
    else:
        settings.write_text(settings.read_text().replace('"mounts": "kernel"', '"mounts": "cow"'))
    well, text = job_mount.report(settings)
    assert not well
    assert word in text


def test_fuse_is_a_choice_and_no_fault(tmp_path: Path) -> None:
    given = ImporterSettings(store=tmp_path / "store", state=tmp_path / "state", mounts="fuse")
    program = install(given, tmp_path / "prefix")
    assert job_mount.report(program.with_name("pyxis-importer.json")) == (
        True,
        "turned off (mounts: fuse): steps read through squashfuse",
    )
