"""One private Slurm of two nodes, and one image, for all tests of this folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import squashed
from tests.support.slurm import Slurm, missing, private_slurm


@pytest.fixture(scope="package")
def shared_slurm() -> Iterator[Slurm]:
    if missing():
        pytest.skip(missing())
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
        pytest.skip(squashed.missing())
    return squashed.squash(tmp_path_factory.mktemp("image"), word="one mount")
