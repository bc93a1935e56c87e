"""A store that several users work in: a group, ACLs, a server with root_squash, a quota that is used up."""

from __future__ import annotations

import contextlib
import grp
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import PublishError, ToolError
from pipeline.store import checkup, leases, prune
from pipeline.store.store import Store
from tests.support.faults.crash_actions import ALL_OLD
from tests.support.faults.people import as_user
from tests.support.store import invariants
from tests.support.store.releases import folder, new_store, publish, record_for

ANNA, BEN, GUEST = 41001, 41002, 41003
TEAM, OTHERS = 100, 41009
"""The group `users`, which every system has, and one that owns nothing."""

pytestmark = pytest.mark.needs("root")


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user can reach, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="sqshpipe-shared-", dir="/var/tmp"))
    path.chmod(0o755)
    for version in ("v1.0", "v1.1", "v1.2", "v1.3"):
        (path / version).write_text(version)
    publish(new_store(path / "warm"), "v1.0")  # what is imported late is imported now, while we may read it
    yield path
    shutil.rmtree(path, ignore_errors=True)


def run(*argv: object) -> None:
    subprocess.run([str(word) for word in argv], check=True, capture_output=True, timeout=60)


def put(store: Store, sources: Path, version: str) -> None:
    """Publish a file that every user can read: pytest's own folders are private."""
    store.publish(record_for(version.encode(), version), sources / version)


def work_as_a_team(public: Path, root: Path, group: str | None = None) -> None:
    """Two publish, promote and prune, whatever their umask; a third reads and leases and can do no harm."""
    store = Store(root, group=group)
    assert as_user(ANNA, store.create, group=TEAM) == ""
    assert as_user(ANNA, lambda: put(store, public, "v1.0"), group=TEAM) == ""
    assert as_user(BEN, lambda: put(store, public, "v1.1"), group=TEAM) == ""
    assert as_user(BEN, lambda: store.promote("demo:v1.0", "nightly"), group=TEAM) == ""
    assert as_user(ANNA, lambda: put(store, public, "v1.2"), group=TEAM) == ""
    assert as_user(ANNA, lambda: store.promote("demo:v1.1", "nightly"), group=TEAM) == ""
    assert as_user(GUEST, lambda: store.resolve("demo:nightly"), group=OTHERS) == ""
    assert as_user(GUEST, store.resolve("demo").path.read_bytes, group=OTHERS) == ""
    refused = as_user(GUEST, lambda: put(store, public, "v1.3"), group=OTHERS)
    assert refused.startswith("PublishError: not allowed while")
    lease = []

    def hold() -> None:
        lease.append(leases.take(store.layout, store.resolve("demo:v1.0"), seconds=3600))

    assert as_user(GUEST, hold, group=OTHERS) == ""
    held = next(store.layout.leases.iterdir())
    assert held.stat().st_uid == GUEST
    assert as_user(ANNA + 10, lambda: leases.drop(held), group=OTHERS).startswith("PublishError: not allowed")
    for who in (ANNA, BEN):
        assert as_user(who, lambda: prune.prune(store.layout, ALL_OLD, prune.no_jobs), group=TEAM) == ""
    assert store.resolve("demo:v1.0").path.exists()
    invariants.check(store, {version: version.encode() for version in ("v1.0", "v1.1", "v1.2")})


def test_a_group_shares_a_store_whatever_the_umasks(public: Path) -> None:
    place = public / "fsx"
    place.mkdir()
    os.chown(place, ANNA, TEAM)
    name = grp.getgrgid(TEAM).gr_name
    work_as_a_team(public, place / "containers", name)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (place / "containers").rglob("*") if path.is_dir()}
    assert modes == {0o2775, 0o1777}
    assert [
        one.found for one in checkup.examine(place / "containers", group=name) if one.level == "fail"
    ] == []


def test_a_store_without_a_group_is_its_makers_alone(public: Path) -> None:
    place = public / "fsx"
    place.mkdir()
    os.chown(place, ANNA, TEAM)
    store = Store(place / "containers")
    assert as_user(ANNA, store.create, group=TEAM) == ""
    assert as_user(ANNA, lambda: put(store, public, "v1.0"), group=TEAM) == ""
    refused = as_user(BEN, lambda: put(store, public, "v1.1"), group=TEAM)
    assert "not allowed" in refused
    reported: list[str] = []

    def look() -> None:
        reported.extend(one.found for one in checkup.examine(store.root) if one.level == "fail")
        raise PublishError("; ".join(reported))

    assert "not allowed while trying to write" in as_user(BEN, look, group=TEAM)


@pytest.mark.needs("setfacl", "/dev/loop-control", "mkfs.ext4")
def test_default_acls_share_a_store(public: Path) -> None:
    image, point = public / "ext4.img", public / "fsx"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    point.mkdir()
    run("mkfs.ext4", "-q", "-m", "0", image)
    run("mount", "-o", "loop,acl", image, point)
    try:
        root = point / "containers"
        root.mkdir(mode=0o755)
        os.chown(root, ANNA, OTHERS)
        run("setfacl", "-m", f"g:{TEAM}:rwx,d:g:{TEAM}:rwx,d:u::rwx,d:g::r-x,d:o::r-x", root)
        work_as_a_team(public, root)
    finally:
        run("umount", point)


@contextlib.contextmanager
def squashing(public: Path) -> Iterator[tuple[Path, Path]]:
    """(what the server has, where its client mounts it)"""
    server, point = public / "server", public / "client"
    server.mkdir()
    point.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.faults.badfs", server, point, "root-squash"]
    )
    try:
        deadline = time.monotonic() + 30
        while not point.is_mount():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        yield server, point
    finally:
        run("fusermount3", "-u", "-z", point)
        process.wait(30)


@pytest.mark.needs("fusermount3", "/dev/fuse")
def test_root_is_nobody_at_the_server(public: Path) -> None:
    with squashing(public) as (server, point):
        (server / "ours").mkdir()
        os.chown(server / "ours", ANNA, TEAM)
        store = Store(point / "ours" / "containers")
        assert as_user(ANNA, store.create, group=TEAM) == ""
        assert as_user(ANNA, lambda: put(store, public, "v1.0"), group=TEAM) == ""
        with pytest.raises(PublishError, match="not allowed") as caught:
            put(store, public, "v1.1")
        assert "root_squash" in caught.value.hint
        assert store.resolve("demo").version == "v1.0"
        reported = [one for one in checkup.examine(store.root) if one.level == "fail"]
        assert len(reported) == 1
        assert "root_squash" in reported[0].advice
        (server / "anybody").mkdir()
        (server / "anybody").chmod(0o777)
        careless = new_store(point / "anybody" / "containers")
        put(careless, public, "v1.0")
        assert (server / "anybody/containers").stat().st_uid == 65534
        found = [one for one in checkup.examine(careless.root) if "belong to uid 65534" in one.found]
        assert "root_squash" in found[0].advice


@pytest.mark.needs("mkfs.btrfs", "btrfs", "/dev/loop-control")
def test_a_quota_that_is_used_up_is_reported_before_anything_is_written(public: Path) -> None:
    """A quota of a folder, as projects have them on Lustre and XFS: df shows room that there is not."""
    image, point = public / "btrfs.img", public / "fsx"
    with image.open("wb") as file:
        file.truncate(512 << 20)
    point.mkdir()
    run("mkfs.btrfs", "-q", image)
    run("mount", "-o", "loop", image, point)
    try:
        run("btrfs", "quota", "enable", point)
        run("btrfs", "subvolume", "create", point / "team")
        store = new_store(point / "team" / "containers")
        publish(store, "v1.0")
        run("btrfs", "qgroup", "limit", "24M", point / "team")
        assert shutil.disk_usage(store.root).free > 200 << 20
        for action in (
            lambda: store.make_room(64 << 20),
            lambda: publish(store, "v1.1", os.urandom(64 << 20)),
        ):
            with pytest.raises(ToolError, match="the quota there does not allow it"):
                action()
        assert [name for name in folder(store.layout.blobs) if name.startswith(".")] == []
        run("btrfs", "qgroup", "limit", "none", point / "team")
        publish(store, "v1.1", os.urandom(64 << 20))
        invariants.check(store, {})
    finally:
        run("umount", point)
