"""Who published a release stands in its record."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.release.publish import publish_external
from pipeline.store.events import whoami
from tests.support.store.releases import new_store
from tests.support.store.showcase import sqsh


def test_the_record_names_the_user_or_the_person_behind_the_workflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(tmp_path / "store")
    file = sqsh(tmp_path / "work", {"libc6": "2.39"}, weight=1000)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.setenv("GITHUB_ACTOR", "mina")
    made = publish_external(file, store=store, image="demo", version="1", allow_external=True)
    assert made.provenance["by"] == whoami()
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    made = publish_external(file, store=store, image="demo", version="2", allow_external=True)
    assert made.provenance["by"] == "mina (GitHub Actions)"
