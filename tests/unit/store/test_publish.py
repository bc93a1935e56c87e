"""Publishing: what is there afterwards, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, PublishError, VerificationError
from pipeline.store.store import Store
from pipeline.system import exclusive, temporary
from tests.support.store.releases import folder, new_store, publish, record_for


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "containers")


def test_a_release_has_bytes_record_links_and_caches(store: Store) -> None:
    release = publish(store, "v1.0", b"content")
    assert release.path.read_bytes() == b"content"
    assert release.path.stat().st_mode & 0o777 == 0o444
    assert release.public_path == store.root / "demo/v1.0.sqsh"
    assert (store.root / "demo/latest.sqsh").readlink() == Path("v1.0.sqsh")
    assert json.loads((store.root / "demo/v1.0.json").read_bytes())["sha256"] == release.sha256
    manifest = json.loads((store.root / "manifest.json").read_bytes())
    assert manifest["images"]["demo"]["releases"]["v1.0"]["state"] == "published"
    assert manifest["images"]["demo"]["channels"] == {"latest": "v1.0"}
    assert folder(store.layout.blobs) == [f"{release.sha256}.sqsh"]


def test_plain_tools_can_check_an_image_folder(store: Store) -> None:
    publish(store, "v1.0")
    publish(store, "v1.1")
    done = subprocess.run(
        ["sha256sum", "--check", "SHA256SUMS"], cwd=store.root / "demo", capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "v1.0.sqsh: OK\nv1.1.sqsh: OK\n")


def test_the_same_content_again_changes_nothing(store: Store) -> None:
    publish(store, "v1.0", b"content")
    before = {path: path.lstat().st_mtime_ns for path in store.root.rglob("*")}
    publish(store, "v1.0", b"content")
    assert {path: path.lstat().st_mtime_ns for path in store.root.rglob("*")} == before


def test_other_content_is_refused_and_leaves_no_trace(store: Store) -> None:
    publish(store, "v1.0", b"content")
    before = sorted(store.root.rglob("*"))
    with pytest.raises(PublishError, match="other content"):
        publish(store, "v1.0", b"other content")
    assert sorted(store.root.rglob("*")) == before


def test_a_file_in_staging_is_not_copied(store: Store) -> None:
    with store.staging() as staged:
        staged.write_bytes(b"content")
        inode = staged.stat().st_ino
        release = store.publish(record_for(b"content", "v1.0"), staged)
    assert release.path.stat().st_ino == inode
    assert folder(store.layout.blobs) == [release.path.name]


def test_staging_is_left_empty_also_by_a_failure(store: Store) -> None:
    def convert() -> None:
        with store.staging() as staged:
            staged.with_name(staged.name + ".partial").write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        convert()
    assert folder(store.layout.blobs) == []


def test_bytes_that_are_not_what_was_verified_are_refused(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"changed meanwhile")
    with pytest.raises(VerificationError, match="17 bytes"):
        store.publish(record_for(b"content", "v1.0"), file)
    assert folder(store.layout.blobs) == []
    assert store.release("demo", "v1.0") is None


def test_two_versions_share_bytes(store: Store) -> None:
    first, second = publish(store, "v1.0", b"same"), publish(store, "v1.1", b"same")
    assert first.path == second.path
    assert store.resolve("demo").version == "v1.1"


def test_damaged_bytes_are_not_taken_for_a_new_version(store: Store) -> None:
    blob = publish(store, "v1.0", b"same").path
    blob.chmod(0o644)
    blob.write_bytes(b"rot!")
    with pytest.raises(VerificationError, match="damaged"):
        publish(store, "v1.1", b"same")


def test_a_second_platform_has_files_of_its_own(store: Store) -> None:
    publish(store, "v1.0", b"amd")
    arm = publish(store, "v1.0", b"arm", platform="linux/arm64")
    assert arm.public_path == store.root / "demo/v1.0.linux-arm64.sqsh"
    assert store.resolve("demo", "linux/arm64").sha256 == arm.sha256
    assert (store.root / "demo/latest.linux-arm64.sqsh").readlink() == Path("v1.0.linux-arm64.sqsh")
    with pytest.raises(ConfigError, match="not published for linux/ppc64le") as caught:
        store.resolve("demo:v1.0", "linux/ppc64le")
    assert caught.value.hint == "there is: linux/amd64, linux/arm64"


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
@pytest.mark.parametrize("renames", [True, False], ids=["renameat2", "rename"])
def test_where_links_are_refused_nothing_is_replaced_either(
    store: Store, monkeypatch: pytest.MonkeyPatch, code: int, renames: bool
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)

    if not renames:
        monkeypatch.setattr(exclusive, "_rename_no_replace", Path.rename)
    publish(store, "v1.0", b"content")
    publish(store, "v1.1", b"content")
    with pytest.raises(PublishError, match="other content"):
        publish(store, "v1.0", b"other content")
    assert store.resolve("demo").version == "v1.1"
    assert not list(store.root.rglob(".claim*"))


def test_a_link_that_succeeded_and_says_it_did_not(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def lose_the_reply(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", lose_the_reply)
    assert publish(store, "v1.0", b"content").sha256 == record_for(b"content", "v1.0").sha256
    with pytest.raises(PublishError, match="other content"):
        publish(store, "v1.0", b"other content")


def test_caches_that_are_lost_or_broken_are_made_again(store: Store) -> None:
    publish(store, "v1.0")
    publish(store, "v1.1")
    whole = {path: path.read_bytes() for path in (store.layout.index("demo"), store.layout.manifest)}
    store.layout.index("demo").write_bytes(b"{")
    store.layout.head("demo").unlink()
    store.layout.link("demo", "v1.0", "linux/amd64").unlink()
    release = store.resolve("demo:v1.0")
    assert release.public_path == release.path
    assert store.resolve("demo").version == "v1.1"
    assert store.rebuild() == []
    assert {path: path.read_bytes() for path in whole} == whole
    assert store.resolve("demo:v1.0").public_path.name == "v1.0.sqsh"


def test_a_record_that_cannot_be_read_harms_no_other(store: Store) -> None:
    publish(store, "v1.0")
    (store.root / "demo/v0.9.json").write_text('{"schema": 1, "image": "demo"')
    publish(store, "v1.1")
    assert [line.version for line in store.listed("demo")] == ["v1.1", "v1.0"]
    assert "v0.9.json is damaged" in store.rebuild()[0]
    with pytest.raises(PublishError, match=r"v0\.9\.json is damaged"):
        store.resolve("demo:v0.9")


def test_a_newer_schema_is_refused_and_an_older_one_read(store: Store) -> None:
    release = publish(store, "v1.0", b"content")
    old = {"image": "demo", "version": "v0.1", "sha256": release.sha256, "size": release.size}
    (store.root / "demo/v0.1.json").write_text(json.dumps(old))
    assert store.resolve("demo:v0.1").scan["status"] == "external"
    (store.root / "demo/v9.json").write_text(json.dumps({**old, "version": "v9", "schema": 2}))
    with pytest.raises(PublishError, match=r"v9\.json has schema 2") as caught:
        store.resolve("demo:v9")
    assert "upgrade" in caught.value.hint
    store.layout.index("demo").write_text('{"schema": 2}')
    with pytest.raises(PublishError, match="schema 2"):
        store.listed("demo")


def test_a_claim_of_the_dead_is_broken_and_one_of_the_living_is_not(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    publish(store, "v1.0")
    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(exclusive, "_CLAIM_SECONDS", 0.1)
    own = temporary.temporary_name()
    dead = own.replace(f".{os.getpid()}.", ".4194304.")
    claim = store.root / "demo/.claim.v1.1.json"
    claim.symlink_to(dead)
    assert publish(store, "v1.1").state == "published"
    (store.root / "demo/.claim.v1.2.json").symlink_to(own)
    with pytest.raises(PublishError, match="another publisher holds"):
        publish(store, "v1.2")


@pytest.mark.parametrize("cache", ["manifest.json", "demo/index.json", "demo/.meta/head.json"])
def test_nothing_is_written_over_what_a_newer_version_wrote(store: Store, cache: str) -> None:
    publish(store, "v1.0")
    newer = b'{"schema": 2, "images": {}, "more": "than we know"}'
    (store.root / cache).write_bytes(newer)
    for action in (store.rebuild, lambda: publish(store, "v1.1")):
        with pytest.raises(PublishError, match="schema 2") as caught:
            action()
        assert "upgrade" in caught.value.hint
        assert (store.root / cache).read_bytes() == newer


def test_an_event_of_a_newer_schema_or_kind_is_refused(store: Store) -> None:
    publish(store, "v1.0")
    path = store.layout.event("demo", 2)
    path.write_text('{"schema": 2, "event": "promote", "version": "v1.0"}')
    with pytest.raises(PublishError, match="schema 2"):
        store.resolve("demo")
    path.write_text('{"schema": 1, "event": "bless", "version": "v1.0"}')
    with pytest.raises(PublishError, match="'bless' that this sqshpipe does not know"):
        store.resolve("demo")


def test_the_first_publish_makes_the_folder_for_leases(store: Store) -> None:
    publish(store, "v1.0")
    assert store.layout.leases.stat().st_mode & 0o7777 == 0o1777
    store.layout.leases.chmod(0o755)  # as a run leaves it that is killed between two calls
    publish(store, "v1.1")
    assert store.layout.leases.stat().st_mode & 0o7777 == 0o1777
