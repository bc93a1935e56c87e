"""A store is created once in its life; whatever finds none refuses, and makes none."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.errors import ConfigError, PublishError
from pipeline.store import creation
from pipeline.store.layout import Layout
from pipeline.store.store import Store
from tests.support.command_line import app
from tests.support.store.releases import new_store, publish, record_for

IMAGES = "version: 1\nregistry: {url: '127.0.0.1:9/team'}\nimages: {demo: {base: '127.0.0.1:9/a/b:1'}}\n"
VERBS = [
    ["list"],
    ["show", "demo:v1"],
    ["resolve", "demo"],
    ["store", "import", "{file}", "--as", "demo:v1"],
    ["store", "import", "{file}", "--as", "demo:v1", "--dry-run"],
    ["promote", "demo:v1", "stable"],
    ["rollback", "demo", "stable"],
    ["yank", "demo:v1"],
    ["keep", "demo:v1"],
    ["store", "lease", "create", "demo"],
    ["store", "lease", "list"],
    ["store", "prune", "--no-slurm"],
    ["store", "scrub"],
    ["store", "usage"],
    ["store", "metrics"],
    ["store", "rebuild"],
    ["store", "rescan"],
    ["report", "-o", "{file}.html"],
    ["diff", "demo:v1", "demo:v2"],
    ["attest", "sign", "demo:v1", "--key", "{file}"],
    ["plan", "--config", "{config}"],
    ["release", "demo", "--tag", "v1", "--config", "{config}", "--no-notify"],
    ["history", "demo"],
    ["store", "rebuild", "--layers", "--config", "{config}"],
    ["node", "prewarm", "demo", "--nodes", "n1"],
    ["node", "profile", "demo", "--", "true"],
    ["node", "bench", "demo"],
    ["run", "demo", "--", "true"],
    ["node", "mount", "demo"],
    ["node", "check", "demo"],
    ["job", "script", "demo", "--", "true"],
]


def nothing(root: Path) -> None:
    """No folder at all."""


def empty(root: Path) -> None:
    """A mount point on which nothing is mounted."""
    root.mkdir()


def other_things(root: Path) -> None:
    """A folder that belongs to something else, which also has JSON files in folders."""
    (root / "leases").mkdir(parents=True)
    (root / "data").mkdir()
    (root / "data" / "v1.json").write_text('{"image": "data"}')
    (root / "data" / "index.json").write_text("{}")
    (root / "notes.txt").write_text("mine")


def dangling(root: Path) -> None:
    """The symlink of a store to a file system that is gone."""
    root.symlink_to(root.parent / "gone")


def file(root: Path) -> None:
    """A file."""
    root.write_text("mine")


PLACES: list[Callable[[Path], None]] = [nothing, empty, other_things, dangling, file]


def content(root: Path) -> list[tuple[str, int]]:
    """Everything at and below `root`."""
    return [
        (str(path), path.lstat().st_mode)
        for path in sorted([root, *root.rglob("*")])
        if os.path.lexists(path)
    ]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_no_verb_makes_a_store(words: list[str], place: Callable[[Path], None], tmp_path: Path) -> None:
    root = tmp_path / "store"
    place(root)
    (tmp_path / "some.sqsh").write_bytes(b"hsqs")
    (tmp_path / "images.yaml").write_text(IMAGES)
    before = content(root)
    named = {"file": str(tmp_path / "some.sqsh"), "config": str(tmp_path / "images.yaml")}
    argv = [word.format(**named) for word in words]
    end = argv.index("--") if "--" in argv else len(argv)
    done = CliRunner().invoke(app, [*argv[:end], "--store", str(root), *argv[end:]])
    assert done.exit_code == 1
    assert isinstance(done.exception, PublishError), done.exception
    assert done.exception.exit_code == 8
    assert re.match(rf"there is no store at {re.escape(str(root))} \(", done.exception.headline)
    assert "is its file system mounted?" in done.exception.headline
    assert f"sqshpipe store create {root}" in done.exception.hint
    assert content(root) == before


@pytest.mark.parametrize("place", PLACES)
def test_no_call_makes_a_store(place: Callable[[Path], None], tmp_path: Path) -> None:
    root = tmp_path / "store"
    place(root)
    before = content(root)
    (tmp_path / "source").write_bytes(b"bytes")
    store = Store(root)
    calls: list[Callable[[], object]] = [
        store.prepare,
        store.images,
        store.rebuild,
        lambda: store.make_room(1),
        lambda: store.staging().__enter__(),
        lambda: store.publish(record_for(b"bytes", "v1"), tmp_path / "source"),
        lambda: store.promote("demo:v1", "stable"),
        lambda: store.rollback("demo", "stable"),
        lambda: store.mark("demo:v1", "yank"),
        lambda: store.release("demo", "v1"),
        lambda: store.made_from("sha256:" + "a" * 64, ["x"], "linux/amd64"),
    ]
    for call in calls:
        with pytest.raises(PublishError, match="there is no store"):
            call()
    assert content(root) == before


def test_a_store_that_goes_away_while_an_image_is_made_is_not_made_anew(tmp_path: Path) -> None:
    store = new_store(tmp_path / "store")
    publish(store, "v1.0")
    with store.staging() as staged:
        staged.write_bytes(b"bytes")
        store.root.rename(tmp_path / "elsewhere")
        store.root.mkdir()
        with pytest.raises(PublishError, match="the folder is empty"):
            store.publish(record_for(b"bytes", "v1.1"), staged)
        store.root.rmdir()
        (tmp_path / "elsewhere").rename(store.root)
    assert [line.version for line in store.listed("demo")] == ["v1.0"]


@pytest.mark.parametrize("keep", ["blobs", "manifest.json", "demo"])
def test_stores_that_are_there_are_recognized(keep: str, tmp_path: Path) -> None:
    store = new_store(tmp_path / "store")
    publish(store, "v1.0")
    for path in list(store.root.iterdir()):
        if path.name != keep:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert creation.is_store(store.layout)
    assert store.create() is False
    if keep == "demo":
        shutil.rmtree(store.root / "demo" / ".meta")  # records without events
        assert creation.is_store(store.layout)
    store.prepare()
    assert store.layout.blobs.is_dir()


def test_it_is_created_once_and_stays_as_it_is(tmp_path: Path) -> None:
    root = tmp_path / "new" / "store with blank"
    made = CliRunner().invoke(app, ["store", "create", str(root)])
    assert (made.exit_code, made.stdout) == (0, f"{root}\n")
    assert stat.S_IMODE((root / "leases").stat().st_mode) == 0o1777
    publish(Store(root), "v1.0")
    before = content(root)
    again = CliRunner().invoke(app, ["store", "create", "--store", str(root)])
    assert (again.exit_code, again.stdout) == (0, f"{root}\n")
    assert "is a store already" in again.stderr
    assert content(root) == before


def test_a_folder_with_other_things_can_become_a_store(tmp_path: Path) -> None:
    other_things(tmp_path / "store")
    assert Store(tmp_path / "store").create()
    assert (tmp_path / "store" / "notes.txt").read_text() == "mine"
    publish(Store(tmp_path / "store"), "v1.0")


def test_no_group_of_that_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no group"):
        Store(tmp_path / "store", group="no-such-group").create()
    assert not creation.is_store(Layout(tmp_path / "store"))


def test_a_mount_point_of_fstab_that_is_not_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = tmp_path / "fs x"
    point.mkdir()
    written = str(point).replace(" ", "\\040")
    (tmp_path / "fstab").write_text(
        f"# what is mounted\nserver:/ / nfs ro 0 0\nserver:/fs {written} nfs _netdev 0 0\n"
    )
    (tmp_path / "mounts").write_text("server:/ / nfs ro 0 0\n")
    monkeypatch.setattr(creation, "FSTAB", tmp_path / "fstab")
    monkeypatch.setattr(creation, "MOUNTS", tmp_path / "mounts")
    with pytest.raises(PublishError, match="is not mounted"):
        Store(point / "containers").create()
    assert list(point.iterdir()) == []
    (tmp_path / "mounts").write_text(f"server:/ / nfs ro 0 0\nserver:/fs {written} nfs rw 0 0\n")
    assert Store(point / "containers").create()


@pytest.mark.needs("root")
def test_a_real_file_system_that_is_unmounted(tmp_path: Path) -> None:
    point = tmp_path / "fsx"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", point], check=True)
    try:
        store = new_store(point / "containers")
        publish(store, "v1.0")
        subprocess.run(["umount", "-l", point], check=True)
        with pytest.raises(PublishError, match="it does not exist"):
            publish_only(store, tmp_path)
        assert list(point.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", point], check=False, stderr=subprocess.DEVNULL)


def publish_only(store: Store, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"v1.1")
    store.publish(record_for(b"v1.1", "v1.1"), tmp_path / "source")
