"""A kernel mount stayed where umount was not in PATH; what an older version left ended the command."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.node import shared_mount
from pipeline.system import mount
from tests.support.images.squashed import squash


@pytest.mark.needs("root", "mksquashfs")
def test_a_kernel_mount_is_undone_without_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, place = squash(tmp_path), tmp_path / "place"
    place.mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with mount.mounted(file, place, kind="kernel"):
        assert place.is_mount()
        held = os.open(next(place.iterdir()), os.O_RDONLY)  # in use: it is detached
    os.close(held)
    assert not place.is_mount()


@pytest.mark.needs("root", "mksquashfs")
def test_what_another_version_left_in_a_folder_of_mounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQSHPIPE_NODE_DIR", str(tmp_path / "node"))
    file, sha256 = squash(tmp_path), "ab" * 32
    (tmp_path / "node" / sha256 / "root").mkdir(parents=True)
    (tmp_path / "node").chmod(0o755)
    for _ in range(2):
        held = shared_mount.acquire(file, sha256, f"{shared_mount.holder_of(os.getpid())}-1", kind="kernel")
        assert held.root.is_mount()
        shared_mount.release(sha256, f"{shared_mount.holder_of(os.getpid())}-1")
        assert not held.root.is_mount()
