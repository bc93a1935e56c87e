"""Faults on a node: its own disk, and the store as it sees it. The table is tests/support/fault_matrix.py."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ToolError
from pipeline.node import prewarm_on_node, pyxis_importer
from tests.support.store.handmade_store import squashfs_like
from tests.support.store.releases import new_store, publish


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_prewarm_onto_a_disk_that_fails(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy gets no name, what is in the store is read on, and the next prewarm ends well."""
    data = squashfs_like("warm", 300_000)
    file, local = tmp_path / "file.sqsh", tmp_path / "nvme"
    file.write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()

    def failing(*_: object) -> int:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing)
        with pytest.raises(ToolError, match=r"nvme"):
            prewarm_on_node.onto_disk(file, sha256, local, state=None)
    assert list(local.iterdir()) == []
    assert prewarm_on_node.onto_disk(file, sha256, local, state=None).path.read_bytes() == data


@pytest.mark.parametrize("error", [errno.ESTALE, errno.EIO, errno.ENOTCONN])
def test_a_get_from_a_store_that_is_stale(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence while it lasts, no lease on what was not given, and a path again afterwards."""
    store = new_store(tmp_path / "store")
    publish(store, "v1.0", squashfs_like("one"))
    settings = pyxis_importer.Settings({"schema": 1, "store": str(store.root)})
    real = os.open

    def stale(path: Any, *arguments: Any, **more: Any) -> int:
        if str(store.root) in str(path):
            raise OSError(error, os.strerror(error), str(path))
        return real(path, *arguments, **more)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", stale)
        with pytest.raises(pyxis_importer.Refused, match=str(store.root)):
            pyxis_importer.get(settings, "docker://demo")
    assert list(store.layout.leases.glob("*")) == []
    assert pyxis_importer.get(settings, "docker://demo") == str(store.resolve("demo").path)
