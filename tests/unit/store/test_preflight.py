"""Before the work: room, rights, and folders that a team shares."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, ToolError
from pipeline.store import folders, preflight
from pipeline.store.adopt import guess_name
from pipeline.store.store import Store
from tests.support.releases import publish, record_for


def test_no_room_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "containers")
    monkeypatch.setattr(preflight, "MARGIN_BYTES", 1 << 60)
    with pytest.raises(ToolError, match="is needed"):
        publish(store, "v1.0")
    assert list(store.layout.blobs.iterdir()) == []


def test_a_private_umask_does_not_hide_the_store(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        release = publish(Store(tmp_path / "containers"), "v1.0")
    finally:
        os.umask(before)
    for path in (tmp_path / "containers", release.link.parent, release.path.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert stat.S_IMODE((release.link.parent / "index.json").stat().st_mode) == 0o644


def test_a_shared_store_stays_shared_below(tmp_path: Path) -> None:
    root = tmp_path / "containers"
    root.mkdir()
    root.chmod(0o2770)
    before = os.umask(0o077)
    try:
        publish(Store(root), "v1.0")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in root.rglob("*") if path.is_dir()}
    assert modes == {0o2770}


def test_a_group_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no group"):
        Store(tmp_path / "containers", group="no-such-group").publish(
            record_for(b"x", "v1.0"), tmp_path / "x"
        )
    folders.found(tmp_path / "other")
    with pytest.raises(ConfigError, match="no group"):
        preflight.check_group(Store(tmp_path / "other").layout, "no-such-group")


def test_what_examination_finds(tmp_path: Path) -> None:
    store = Store(tmp_path / "containers")
    assert [finding.level for finding in preflight.examine(store.root)] == ["warn"]
    publish(store, "v1.0")
    found = {finding.found: finding.level for finding in preflight.examine(store.root)}
    assert found["files and hard links can be made"] == "ok"
    assert any("leases" in text for text in found)
    store.layout.head("demo").unlink()
    (store.root / "demo/v0.json").write_text("{")
    worse = {finding.found: finding.level for finding in preflight.examine(store.root)}
    assert worse["the index of demo is stale"] == "warn"
    assert any("v0.json is damaged" in text and level == "fail" for text, level in worse.items())
    assert preflight.examine(tmp_path / "containers/manifest.json")[0].level == "fail"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("nvidia+pytorch+24.01-py3.sqsh", ("nvidia-pytorch", "24.01-py3")),
        ("megatron-training_v1.0.sqsh", ("megatron-training", "v1.0")),
        ("Demo-1.2-cuda.squashfs", ("demo", "1.2-cuda")),
        ("demo-v1.sqsh", ("demo", "v1")),
    ],
)
def test_names_of_hand_made_files(file: str, name: tuple[str, str]) -> None:
    assert guess_name(Path("/data") / file) == name


@pytest.mark.parametrize("file", ["training.sqsh", "+v1.sqsh", "image_.sqsh"])
def test_names_that_do_not_say(file: str) -> None:
    with pytest.raises(ConfigError, match="does not say"):
        guess_name(Path(file))
