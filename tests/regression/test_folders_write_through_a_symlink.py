"""In a store that a team shares, a member's symlink in place of a folder makes nobody write elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.errors import PublishError
from tests.support.store.releases import new_store, publish

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives a symlink to another user, which root may")


@pytest.mark.parametrize("name", ["demo", "demo/.meta", "demo/.meta/events"])
def test_nothing_is_written_through_another_user_s_symlink(tmp_path: Path, name: str) -> None:
    store = new_store(tmp_path / "containers")
    publish(store, "v1.0", image="other")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "events").mkdir(parents=True)
    link = store.root / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(elsewhere)
    os.lchown(link, 12345, 12345)
    before = sorted(elsewhere.rglob("*"))
    with pytest.raises(PublishError, match="symlink of user 12345"):
        publish(store, "v1.0")
    assert sorted(elsewhere.rglob("*")) == before
    publish(store, "v1.1", image="other")
    link.unlink()
    assert publish(store, "v1.0").state == "published"
