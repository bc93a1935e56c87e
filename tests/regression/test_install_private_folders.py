"""Under umask 077 the folders of `node install` were its owner's alone: no user could run the importer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.node import shim
from pipeline.node.install import ImporterSettings, install
from pipeline.system import untrusted
from tests.support.store.releases import new_store


@pytest.fixture(params=[0o077, 0o027, 0])
def mask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.usefixtures("mask")
def test_every_user_reaches_what_is_installed(tmp_path: Path) -> None:
    settings = ImporterSettings(store=new_store(tmp_path / "store").root, state=tmp_path / "a" / "state")
    prefix = tmp_path / "opt" / "sqshpipe"
    program, served = install(settings, prefix), shim.install(prefix)
    for folder in (
        tmp_path / "a",
        tmp_path / "a" / "state",
        prefix.parent,
        prefix,
        program.parent,
        served.parent,
    ):
        assert folder.stat().st_mode & 0o777 == 0o755, folder


@pytest.mark.usefixtures("mask")
def test_a_folder_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there").chmod(0o750)
    with untrusted.folder_to_write(tmp_path / "there" / "made" / "within", make=0o711):
        pass
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "there", tmp_path / "there" / "made")]
    assert modes == [0o750, 0o711]
