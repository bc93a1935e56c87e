"""The store on real file systems, full and read-only ones, and on one that misbehaves as NFS and Lustre
do.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.errors import PublishError, ToolError
from pipeline.store import checkup, prune, space
from pipeline.store.scrub import scrub
from pipeline.store.store import Store
from pipeline.system.mountinfo import mount_of
from tests.support.faults.crash_actions import ALL_OLD
from tests.support.store import crowd, invariants
from tests.support.store.releases import caches, new_store, publish

MKFS = {"ext4": ["mkfs.ext4", "-q", "-m", "0"], "xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"]}
Mount = Callable[..., Path]


def run(*argv: object) -> None:
    subprocess.run([str(word) for word in argv], check=True, capture_output=True, timeout=60)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Makes a file system of a kind and size (MiB) in a file and mounts it."""
    mounted: list[Path] = []

    def make(kind: str, megabytes: int, options: str = "defaults") -> Path:
        image, point = tmp_path / f"{kind}.img", tmp_path / kind
        with image.open("wb") as file:
            file.truncate(megabytes << 20)
        run(*MKFS[kind], image)
        point.mkdir()
        run("mount", "-o", f"loop,{options}", image, point)
        mounted.append(point)
        return point

    yield make
    for point in mounted:
        run("umount", point)


def live_through(store: Store) -> None:
    """Everything that happens to a store in its life."""
    for version in ("v1.0", "v1.1", "v1.2"):
        publish(store, version)
    publish(store, "v1.2")
    with pytest.raises(PublishError, match="other content"):
        publish(store, "v1.1", b"other content")
    with store.staging() as staged:
        staged.write_bytes(b"v1.3")
        publish(store, "v1.3")
    assert store.resolve("demo").version == "v1.3"
    store.promote("demo:v1.1", "stable")
    store.promote("demo:v1.2", "stable")
    assert store.rollback("demo", "stable") == "v1.1"
    store.mark("demo:v1.3", "yank", reason="wrong")
    assert store.resolve("demo").version == "v1.2"
    for _ in range(2):
        prune.prune(store.layout, ALL_OLD, prune.no_jobs)
    assert [line.version for line in store.listed("demo") if line.state == "published"] == ["v1.2", "v1.1"]
    assert scrub(store.layout).damaged == []
    before = caches(store)
    assert store.rebuild() == []
    assert caches(store) == before
    invariants.check(store, {version: version.encode() for version in ("v1.0", "v1.1", "v1.2", "v1.3")})
    assert not list(prune.temporaries(store.layout))


@pytest.mark.needs("root", "/dev/loop-control", "mkfs.ext4", "mkfs.xfs", "mount")
@pytest.mark.parametrize(("kind", "megabytes"), [("ext4", 96), ("xfs", 320)])
def test_a_life_on_a_real_file_system(mount: Mount, kind: str, megabytes: int) -> None:
    root = mount(kind, megabytes) / "containers"
    live_through(Store(root))
    assert mount_of(root).type == kind
    assert not [finding for finding in checkup.examine(root) if finding.level == "fail"]


def fill(filler: Path, *, leave: int) -> None:
    """Take all of the disk, then give `leave` bytes back."""
    with filler.open("wb", buffering=0) as file:
        for piece in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):  # until it is full
                while True:
                    file.write(bytes(piece))
        file.truncate(file.tell() - leave)
        os.fsync(file.fileno())


@pytest.mark.needs("root", "/dev/loop-control", "mkfs.ext4", "mount")
def test_a_disk_that_is_full_at_any_moment(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is left, from nothing to enough: one sentence, no half release; with room it works."""
    point = mount("ext4", 64)
    store = new_store(point / "containers")
    publish(store, "v1.0")
    with pytest.raises(ToolError, match="is needed"):
        publish(store, "v1.1", b"x" * (100 << 20))
    monkeypatch.setattr(space, "MARGIN_BYTES", -(1 << 30))  # look only when writing fails
    refused = 0
    for left in range(0, 44, 2):
        filler = point / "filler"
        fill(filler, leave=left << 12)
        source = point.parent / "source"
        source.mkdir(exist_ok=True)
        elsewhere = new_store(source / "store")
        content = f"{left}".encode() * 20000
        record = publish(elsewhere, f"v2.{left}", content, created="2026-02-01T00:00:00Z")
        reported = ""
        try:
            store.publish(record, elsewhere.resolve(f"demo:v2.{left}").path)
        except ToolError as error:
            reported = error.message
        assert not reported or "no space" in reported
        refused += bool(reported)
        invariants.check(store, {})
        filler.unlink()
        store.publish(record, elsewhere.resolve(f"demo:v2.{left}").path)
        assert store.resolve(f"demo:v2.{left}").path.read_bytes() == content
        invariants.check(store, {})
    assert 3 < refused < 22
    assert not list(prune.temporaries(store.layout))


@pytest.mark.needs("root", "/dev/loop-control", "mkfs.ext4", "mount")
def test_a_read_only_store_can_be_read(mount: Mount) -> None:
    point = mount("ext4", 96)
    store = new_store(point / "containers")
    publish(store, "v1.0")
    publish(store, "v1.1")
    run("mount", "-o", "remount,ro", point)
    assert store.resolve("demo").version == "v1.1"
    assert len(store.listed("demo")) == 2
    assert prune.prune(store.layout, ALL_OLD, prune.no_jobs, dry_run=True).verdicts
    assert scrub(store.layout).checked == 2
    with pytest.raises(PublishError, match="not allowed"):
        publish(store, "v1.2")
    with pytest.raises(PublishError, match="not allowed"):
        store.promote("demo:v1.0", "stable")
    assert [finding.level for finding in checkup.examine(store.root)].count("fail") == 1


@pytest.fixture
def badfs(tmp_path: Path) -> Iterator[Mount]:
    """Mounts the misbehaving file system: another client of the same server at each call."""
    clients: list[tuple[Path, subprocess.Popen[bytes]]] = []
    backing = tmp_path / "server"
    backing.mkdir()

    def make(*faults: str) -> Path:
        point = tmp_path / f"client{len(clients)}"
        point.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.faults.badfs", backing, point, *faults]
        )
        clients.append((point, process))
        deadline = time.monotonic() + 10
        while not point.is_mount():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        return point

    yield make
    for point, process in clients:
        run("fusermount3", "-u", "-z", point)
        process.wait(10)


FAULTS = ["lost-reply", "no-links", "folders", "stale", "no-locks"]


@pytest.mark.needs("fusermount3", "/dev/fuse")
@pytest.mark.parametrize("faults", [*([fault] for fault in FAULTS), FAULTS[:1] + FAULTS[2:]], ids="+".join)
def test_a_life_on_a_file_system_that_misbehaves(badfs: Mount, faults: list[str]) -> None:
    live_through(new_store(badfs(*faults) / "containers"))


@pytest.mark.needs("fusermount3", "/dev/fuse")
def test_two_clients_that_see_each_other_late(badfs: Mount) -> None:
    """One number is taken by one event, one version by one content, although each learns of it late."""
    first = new_store(badfs("late", "lost-reply", "stale") / "containers")
    second = new_store(badfs("late", "lost-reply", "stale") / "containers")
    publish(first, "v1.0")
    time.sleep(0.5)
    for turn in range(1, 5):
        publish(first, f"v1.{turn}")
        with pytest.raises(PublishError, match="other content"):
            publish(second, f"v1.{turn}", b"other content")
        assert publish(second, f"v1.{turn}").version == f"v1.{turn}"
        publish(second, f"v2.{turn}")
        second.promote(f"demo:v2.{turn}", "stable")
        first.promote(f"demo:v1.{turn}", "stable")
    settled(first, second, "v1.4", 9)


@pytest.mark.needs("fusermount3", "/dev/fuse")
def test_two_clients_that_publish_at_once_and_see_each_other_late(badfs: Mount) -> None:
    """Processes, each at its own mount: one content a version, and no event is lost."""
    roots = [badfs("late", "lost-reply", "stale", "folders") / "containers" for _ in range(2)]
    publish(new_store(roots[0]), "first.0")
    time.sleep(0.5)
    argv = [sys.executable, "-m", "tests.support.store.crowd", "publish"]
    publishers = [
        subprocess.Popen(
            [*argv, str(root), str(number), "3"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for number, root in enumerate(roots)
    ]
    reported = [process.communicate(timeout=120) for process in publishers]
    for process, (_, trouble) in zip(publishers, reported, strict=True):
        assert process.returncode == 0, trouble[-2000:]
    outcomes = Counter(line for out, _ in reported for line in out.splitlines())
    for turn in range(3):
        assert (outcomes[f"won contested{turn}"], outcomes[f"lost contested{turn}"]) == (1, 1)
    time.sleep(0.5)
    store = new_store(roots[0])
    versions = {line.version for line in store.listed("demo")}
    assert len(versions) == 1 + 3 * 4
    mine = {
        version: crowd.content(version) for version in versions if version[0] != "c" and version != "first.0"
    }
    invariants.check(store, mine)
    numbers = [path.name for path in sorted(store.layout.events("demo").glob("*.json"))]
    assert numbers == [f"{number:08d}.json" for number in range(1, len(numbers) + 1)]


def settled(first: Store, second: Store, stable: str, count: int) -> None:
    time.sleep(0.5)
    numbers = [path.name for path in sorted(first.layout.events("demo").iterdir())]
    assert numbers == [f"{number:08d}.json" for number in range(1, len(numbers) + 1)]
    for store in (first, second):
        assert store.resolve("demo:stable").version == stable
        assert len(store.listed("demo")) == count
        invariants.check(store, {line.version: line.version.encode() for line in store.listed("demo")})
