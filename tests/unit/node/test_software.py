"""What a node says of its squashfs server, pyxis and enroot. Plugins of other versions are stood in for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pipeline.node import check, software


def plugin(path: Path, version: str) -> Path:
    """A file with the text that the plugin holds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    said = f"GLIBC_2.3.4\0{version}\0pyxis: version v%s" if version < "0.17" else f"pyxis: version v{version}"
    path.write_bytes(b"\x7fELF" + os.urandom(5000) + f"\0{said}\0".encode() + os.urandom(99))
    return path


def program(folder: Path, name: str, answer: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\necho '{answer}' >&2\nexit 254\n")
    (folder / name).chmod(0o755)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_CONF", raising=False)


def test_the_plugin_that_plugstack_names_comes_first(tmp_path: Path) -> None:
    plugin(tmp_path / "usr/local/lib/slurm/spank_pyxis.so", "0.19.0")
    assert software.pyxis_version(tmp_path) == (0, 19, 0)
    plugin(tmp_path / "opt/pyxis/spank_pyxis.so", "0.24.0")
    text(tmp_path / "etc/slurm/plugstack.conf", "include plugstack.conf.d/*\n")
    text(
        tmp_path / "etc/slurm/plugstack.conf.d/pyxis.conf", "# here\nrequired /opt/pyxis/spank_pyxis.so x=1\n"
    )
    assert software.pyxis_version(tmp_path) == (0, 24, 0)


def test_slurm_conf_says_where_the_files_are(tmp_path: Path) -> None:
    text(tmp_path / "opt/slurm/etc/slurm.conf", "PlugStackConfig=/etc/p.conf # x\nplugindir = /a:/b\n")
    plugin(tmp_path / "b/spank_pyxis.so", "0.20.0")
    assert software.pyxis_version(tmp_path) == (0, 20, 0)
    plugin(tmp_path / "c/spank_pyxis.so", "0.16.1")
    text(tmp_path / "etc/p.conf", "optional /c/spank_pyxis.so\n")
    assert software.pyxis_version(tmp_path) == (0, 16, 1)


@pytest.mark.parametrize("what", ["nothing", "no version", "a folder", "a pipe"])
def test_a_version_that_nobody_can_say(tmp_path: Path, what: str) -> None:
    path = tmp_path / "usr/lib/slurm/spank_pyxis.so"
    path.parent.mkdir(parents=True)
    if what == "no version":
        path.write_bytes(b"\x7fELF")
    elif what == "a folder":
        path.mkdir()
    elif what == "a pipe":
        os.mkfifo(path)
    assert software.pyxis_version(tmp_path) is None


@pytest.mark.parametrize(
    ("version", "well", "words"),
    [
        (
            (0, 16, 1),
            False,
            "pyxis 0.16.1 unpacks the image at each start, so job scripts use `sqshpipe run`",
        ),
        ((0, 20, 0), False, "an upgrade to 0.24 mounts the file"),
        ((0, 22, 0), False, "an upgrade to 0.24 starts names"),
        ((0, 24, 0), True, "pyxis 0.24.0 starts names and paths"),
        ((1, 0), True, "starts names and paths"),
    ],
)
def test_one_sentence_for_each_pyxis(version: tuple[int, ...], well: bool, words: str) -> None:
    found = software.pyxis_sentence(version)
    assert found[0] is well
    assert words in found[1]


@pytest.mark.parametrize(
    ("version", "options", "wanted"),
    [
        ("0.16.1", "", True),
        ("0.16.1", "container_scope=global", False),
        ("0.17.0", "", True),
        ("0.19.0", "", False),
        ("0.20.0", "runtime_path=/x container_scope=job", True),
        ("0.20.0", "# container_scope=job", False),
    ],
)
def test_whether_a_name_is_for_one_job(tmp_path: Path, version: str, options: str, wanted: bool) -> None:
    plugin(tmp_path / "c/spank_pyxis.so", version)
    text(tmp_path / "etc/slurm/plugstack.conf", f"optional /c/spank_pyxis.so {options}\n")
    assert software.names_are_of_a_job(tmp_path) is wanted


@pytest.mark.parametrize(
    ("version", "way"),
    [
        ((0, 16, 1), "run"),
        ((0, 21, 0), "run"),
        ((0, 22, 0), "path"),
        ((0, 24, 0), "pyxis"),
        ((1, 0), "pyxis"),
    ],
)
def test_how_a_job_script_starts_an_image(version: tuple[int, ...], way: str) -> None:
    assert software.way_to_start(version) == way


def test_one_sentence_for_each_enroot() -> None:
    assert not software.enroot_sentence((3, 5, 0))[0]
    assert "an upgrade to 4" in software.enroot_sentence((3, 4, 1))[1]
    assert software.enroot_sentence((4, 1, 2))[0]


@pytest.mark.parametrize(
    ("real_name", "version", "name", "well", "seconds"),
    [
        ("squashfuse", "0.1.105", "squashfuse 0.1.105, single-threaded", False, 4.3),
        ("squashfuse", "0.6.2", "squashfuse 0.6.2, single-threaded", True, 1.7),
        ("squashfuse_ll", "0.6.2", "squashfuse 0.6.2, multi-threaded", True, 1.08),
        ("squashfuse", "?", "squashfuse of unknown version, single-threaded", False, 4.3),
    ],
)
def test_servers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    real_name: str,
    version: str,
    name: str,
    well: bool,
    seconds: float,
) -> None:
    program(tmp_path / "real", real_name, f"squashfuse {version} (c) 2012 Dave Vasilevsky")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "squashfuse").symlink_to(tmp_path / "real" / real_name)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    found = software.pyxis_server()
    assert found is not None
    assert (found.name, found.well, found.seconds) == (name, well, seconds)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert software.run_server() == found
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    kernel = software.run_server()
    assert kernel is not None
    assert kernel.sentence == "kernel mount"


@pytest.mark.needs("squashfuse")
def test_the_installed_squashfuse_says_its_version() -> None:
    found = software.pyxis_server()
    assert found is not None
    assert found.name.startswith("squashfuse 0.")


def test_check_reports_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", "enroot", "3.5.0")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(software, "pyxis_version", lambda: (0, 20, 0))
    sh = shutil.which("sh", path="/bin")
    assert sh
    found = {each.what: each for each in check.software()}
    assert found["enroot"].text.startswith("enroot 3.5.0 imports by tag")
    assert found["pyxis"].verdict == "warn"
    monkeypatch.setattr(software, "pyxis_version", lambda: None)
    assert {each.what: each.verdict for each in check.software()}["pyxis"] == "unknown"
