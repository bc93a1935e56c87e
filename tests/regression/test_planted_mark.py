"""A link planted where the importer marks a checked file, in a folder for all users, was written through."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipeline.cluster import pyxis_importer


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    state, victim = tmp_path / "state", tmp_path / "victim"
    (state / "verified").mkdir(parents=True)
    victim.mkdir()
    file = tmp_path / "file"
    file.write_bytes(b"bytes")
    sha256 = hashlib.sha256(b"bytes").hexdigest()
    status = file.stat()
    mark = f"{sha256}-{status.st_dev:x}-{status.st_ino:x}-{status.st_mtime_ns:x}"
    (state / "verified" / mark).symlink_to(victim / "made")
    settings = pyxis_importer.Settings({"schema": 1, "store": "/store", "state": str(state)})
    entry = {"sha256": sha256, "file": f"blobs/sha256/{sha256}.sqsh"}
    pyxis_importer.verify(str(file), pyxis_importer.Found("demo", "v1", entry), settings, trusted=False)
    assert list(victim.iterdir()) == []
