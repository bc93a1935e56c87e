"""One private Slurm of two nodes, and one image, for all tests of this folder."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.store.record import Record
from pipeline.store.store import Store
from tests import conftest
from tests.support.images import squashed
from tests.support.servers.slurm import Slurm, missing, private_slurm
from tests.support.store.releases import new_store


@pytest.fixture(scope="package")
def shared_slurm() -> Iterator[Slurm]:
    if missing():
        conftest.missing(missing())
    with (
        tempfile.TemporaryDirectory(prefix="sqshpipe-slurm-", dir="/var/tmp") as folder,
        private_slurm(Path(folder), gpus=8) as cluster,
    ):
        yield cluster


@pytest.fixture
def slurm(shared_slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """The shared cluster, with this process's own Slurm commands pointed at it."""
    for name, value in shared_slurm.env.items():
        monkeypatch.setenv(name, value)
    return shared_slurm


@pytest.fixture(scope="package")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .sqsh that can be started; /word says "one mount"."""
    if squashed.missing():
        conftest.missing(squashed.missing())
    return squashed.squash(tmp_path_factory.mktemp("image"), word="one mount")


def record_of(file: Path, version: str, created: str = "2026-01-01T00:00:00Z") -> Record:
    """The record under which a file becomes demo:VERSION."""
    data = file.read_bytes()
    return Record(
        image="demo",
        version=version,
        platform="linux/" + {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        source={"repository": "registry.example.com/demo", "digest": "sha256:" + "a" * 64},
        scan={"status": "unscanned", "scanner": "none"},
        checks=("tree",),
        created=created,
    )


@pytest.fixture
def published(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store with demo:v1.0, and a command `sqshpipe` for job scripts."""
    store = new_store(tmp_path / "store")
    store.publish(record_of(image, "v1.0"), image)
    command = tmp_path / "bin" / "sqshpipe"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipeline "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.setenv("SQSHPIPE_STORE", str(store.root))
    monkeypatch.setenv("SQSHPIPE_NODE_DIR", str(tmp_path / "node"))
    return store
