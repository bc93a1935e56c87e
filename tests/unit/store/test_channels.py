"""Channels, yank and keep: events that decide what resolves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, PublishError
from pipeline.store import channels
from pipeline.store.store import Store
from tests.support.store.releases import caches, new_store, publish


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = new_store(tmp_path / "containers")
    for version in ("v1.0", "v1.1", "v1.2"):
        publish(store, version)
    return store


def test_rollback_goes_back_step_by_step(store: Store) -> None:
    assert store.resolve("demo").version == "v1.2"
    assert store.rollback("demo", "latest") == "v1.1"
    assert store.rollback("demo", "latest") == "v1.0"
    assert (store.root / "demo/latest.sqsh").readlink() == Path("v1.0.sqsh")
    with pytest.raises(PublishError, match=r"nothing before v1\.0"):
        store.rollback("demo", "latest")


def test_publishing_again_does_not_undo_a_rollback(store: Store) -> None:
    store.rollback("demo", "latest")
    publish(store, "v1.2")
    assert store.resolve("demo").version == "v1.1"
    publish(store, "v1.3")
    assert store.resolve("demo").version == "v1.3"


def test_an_older_release_published_late_does_not_become_latest(store: Store) -> None:
    publish(store, "v0.9", created="2025-01-01T00:00:00Z")
    assert store.resolve("demo").version == "v1.2"


def test_promote_follows_a_channel_and_is_done_once(store: Store) -> None:
    assert store.promote("demo:latest", "stable")
    assert not store.promote("demo:v1.2", "stable")
    assert store.resolve("demo:stable").version == "v1.2"


def test_an_event_says_who_when_and_from_what(store: Store) -> None:
    store.promote("demo:v1.0", "stable")
    store.promote("demo:v1.1", "stable", reason="tested")
    events = sorted(store.layout.events("demo").iterdir())
    last = json.loads(events[-1].read_bytes())
    assert (last["event"], last["channel"], last["version"], last["from"]) == (
        "promote",
        "stable",
        "v1.1",
        "v1.0",
    )
    assert last["reason"] == "tested"
    assert "@" in last["by"]
    assert events[-1].stat().st_mode & 0o777 == 0o444


def test_yank_hides_and_moves_channels_back(store: Store) -> None:
    store.promote("demo:v1.2", "stable")
    store.mark("demo:v1.2", "yank", reason="wrong CUDA")
    assert store.resolve("demo").version == "v1.1"
    assert not (store.root / "demo/v1.2.sqsh").is_symlink()
    assert not (store.root / "demo/stable.sqsh").is_symlink()
    with pytest.raises(PublishError, match=r"v1\.2 is yanked: wrong CUDA"):
        store.resolve("demo:v1.2")
    with pytest.raises(PublishError, match="yanked"):
        store.promote("demo:v1.2", "stable")
    with pytest.raises(ConfigError, match="demo:stable names no release"):
        store.resolve("demo:stable")
    assert store.mark("demo:v1.2", "unyank")
    assert store.resolve("demo:v1.2").state == "published"


def test_a_name_is_a_version_or_a_channel_for_good(store: Store) -> None:
    store.promote("demo:v1.0", "nightly")
    with pytest.raises(PublishError, match="is a channel"):
        publish(store, "nightly")
    publish(store, "weekly")
    with pytest.raises(ConfigError, match="is a version"):
        store.promote("demo:v1.0", "weekly")
    for reserved in (
        "latest",
        "stable",
        "index",
        "key-1",
        "v1.sqsh",
        "v1.linux-arm64",
        "../v1",
        ".v1",
        "a/b",
        "",
    ):
        with pytest.raises(ConfigError):
            publish(store, reserved, created="2026-01-01T00:00:00Z")


def test_channels_refuse_what_was_made_elsewhere(store: Store) -> None:
    publish(store, "v2.3", external=True)
    assert store.resolve("demo").version == "v1.2"
    with pytest.raises(PublishError, match="made elsewhere"):
        store.promote("demo:v2.3", "stable")
    assert store.promote("demo:v2.3", "stable", allow_external=True)
    publish(store, "v2.4", external=True, allow_external=True)
    assert store.resolve("demo").version == "v2.4"


def test_two_that_decide_at_once_get_an_order(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read, interfered = channels.add_versions, []

    def somebody_else_was_faster(*arguments: object) -> None:
        read(*arguments)  # type: ignore[arg-type]
        if not interfered:
            interfered.append(True)
            store.promote("demo:v1.0", "stable")

    monkeypatch.setattr(channels, "add_versions", somebody_else_was_faster)
    store.promote("demo:v1.1", "stable")
    events = sorted(store.layout.events("demo").iterdir())
    assert json.loads(events[-1].read_bytes())["from"] == "v1.0"
    assert store.rollback("demo", "stable") == "v1.0"


def test_a_stale_index_misleads_nobody(store: Store) -> None:
    old = caches(store)
    store.promote("demo:v1.0", "stable")
    store.mark("demo:v1.1", "yank")
    for name, content in old.items():
        (store.root / name).write_bytes(content)
    assert store.resolve("demo:stable").version == "v1.0"
    with pytest.raises(PublishError, match="yanked"):
        store.resolve("demo:v1.1")


def test_unknown_names_are_answered_with_near_ones(store: Store) -> None:
    for name, hint in (("demo:v1.3", "v1.2"), ("dmeo", "demo"), ("demo:stabel", "there is: latest, v1.0")):
        with pytest.raises(ConfigError) as caught:
            store.resolve(name)
        assert hint in caught.value.hint
