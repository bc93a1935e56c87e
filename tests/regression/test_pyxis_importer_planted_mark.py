"""A link planted where the importer marks a checked file, in a folder for all users, was written through."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from pipeline.node import pyxis_importer


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    state, victim = tmp_path / "state", tmp_path / "victim"
    (state / "verified").mkdir(parents=True)
    victim.mkdir()
    file = tmp_path / "file"
    file.write_bytes(b"bytes")
    sha256 = hashlib.sha256(b"bytes").hexdigest()
    descriptor = os.open(file, os.O_RDONLY)
    try:
        mark = state / "verified" / pyxis_importer.mark_name(descriptor, sha256)
        mark.symlink_to(victim / "made")
        assert pyxis_importer.verify(descriptor, sha256, str(state))
    finally:
        os.close(descriptor)
    assert list(victim.iterdir()) == []
    assert mark.read_text() == mark.name
    assert not mark.is_symlink()
