"""In the folder for all users: files that the user who prunes cannot read. Each stopped every prune."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from pipeline.errors import PublishError
from pipeline.node import pyxis_importer
from pipeline.store import leases, prune
from pipeline.store.layout import Layout
from pipeline.store.store import Store
from tests.support.faults.crash_actions import ALL_OLD
from tests.support.faults.people import as_user
from tests.support.store.handmade_store import squashfs_like
from tests.support.store.releases import new_store, publish

SERVICE, USER, ATTACKER = 60012, 60013, 60011


@pytest.fixture
def store() -> Iterator[Store]:
    """A store of a service user, with a lease of another user on its oldest version."""
    with tempfile.TemporaryDirectory(prefix="sqshpipe-leases-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        made = new_store(Path(name) / "store")
        for version in ("v1.0", "v2.0", "v3.0"):
            publish(made, version, squashfs_like(version))
        leases.prepare(made.layout)
        for path in (made.root, *made.root.rglob("*")):
            os.chown(path, SERVICE, SERVICE, follow_symlinks=False)
        assert as_user(USER, lambda: lease(made.layout, "honest.json", "v1.0"), group=USER, umask=0o022) == ""
        yield made
        for left in made.layout.leases.iterdir():
            if shutil.which("chattr"):
                subprocess.run(["chattr", "-i", left], check=False, capture_output=True)


def lease(layout: Layout, name: str, version: str) -> Path:
    path = layout.leases / name
    held = {"schema": 1, "sha256": hashlib.sha256(squashfs_like(version)).hexdigest(), "uid": os.getuid()}
    path.write_text(json.dumps(held | {"expires": "2099-01-01T00:00:00Z"}))
    return path


def closed(layout: Layout) -> None:
    lease(layout, "trap.json", "v2.0").chmod(0)


def closed_by_an_acl(layout: Layout) -> None:
    if shutil.which("setfacl") is None:
        pytest.skip("no setfacl")
    path = lease(layout, "trap.json", "v2.0")
    path.chmod(0o644)
    subprocess.run(["setfacl", "-m", f"u:{SERVICE}:---", path], check=True)


def a_pipe(layout: Layout) -> None:
    os.mkfifo(layout.leases / "trap.json", 0o666)


def a_folder(layout: Layout) -> None:
    (layout.leases / "trap.json" / "more").mkdir(parents=True)


def a_link_in_a_circle(layout: Layout) -> None:
    (layout.leases / "trap.json").symlink_to("trap.json")


def a_link_to_a_device(layout: Layout) -> None:
    (layout.leases / "trap.json").symlink_to("/dev/zero")


def nonsense(layout: Layout) -> None:
    (layout.leases / "trap.json").write_text("[" * 60_000)


def a_name_that_gives_orders(layout: Layout) -> None:
    name = b"trap\x1b[2J\n::error::x\xff.json"
    (layout.leases / os.fsdecode(name)).write_text("{}")


WAYS: list[Callable[[Layout], None]] = [
    *(closed, closed_by_an_acl, a_pipe, a_folder, a_link_in_a_circle, a_link_to_a_device, nonsense),
    a_name_that_gives_orders,
]


def prunes(store: Store) -> None:
    """What the service user does: it ends, keeps what the honest lease holds, and names the trap."""
    for _ in range(3):
        with structlog.testing.capture_logs() as logged:
            prune.prune(store.layout, ALL_OLD, prune.no_jobs)
    (warned,) = [each for each in logged if each["log_level"] == "warning"]
    assert "trap" in warned["files"], warned
    assert f"user {ATTACKER}" in warned["files"], warned
    assert warned["files"].isprintable(), warned
    assert store.resolve("demo:v1.0").path.exists()
    assert not (store.layout.blob(hashlib.sha256(squashfs_like("v2.0")).hexdigest())).exists()


@pytest.mark.needs("root")
@pytest.mark.parametrize("trap", WAYS)
def test_a_lease_that_cannot_be_read_stops_nothing(store: Store, trap: Callable[[Layout], None]) -> None:
    assert as_user(ATTACKER, lambda: trap(store.layout), group=ATTACKER, umask=0) == ""
    assert as_user(SERVICE, lambda: prunes(store), group=SERVICE) == ""


@pytest.mark.needs("root", "chattr")
def test_nor_does_one_that_cannot_be_removed(store: Store) -> None:
    path = lease(store.layout, "trap.json", "v2.0")
    path.write_text(path.read_text().replace("2099", "2001"))
    os.chown(path, ATTACKER, ATTACKER)
    if subprocess.run(["chattr", "+i", path], check=False, capture_output=True).returncode:
        pytest.skip("no immutable files on this file system")

    def remove() -> None:
        for _ in range(2):
            prune.prune(store.layout, ALL_OLD, prune.no_jobs)

    assert as_user(SERVICE, remove, group=SERVICE) == ""
    assert store.resolve("demo:v1.0").path.exists()
    assert path.exists()


@contextlib.contextmanager
def locked_by_its_owner(path: Path) -> Iterator[None]:
    """A process of the attacker holds a lease of fcntl(2): who opens the file waits for it, or is refused."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgid(ATTACKER)
            os.setuid(ATTACKER)
            signal.signal(signal.SIGIO, signal.SIG_IGN)
            held = os.open(path, os.O_RDWR)
            fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            os.write(writer, b"1")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    try:
        if os.read(reader, 1) != b"1":
            pytest.skip("no leases of fcntl(2) on this file system")
        yield
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.needs("root")
def test_nor_does_one_that_its_owner_has_locked(store: Store) -> None:
    path = lease(store.layout, "trap.json", "v2.0")
    os.chown(path, ATTACKER, ATTACKER)
    path.chmod(0o666)
    with locked_by_its_owner(path):
        assert as_user(SERVICE, lambda: prunes(store), group=SERVICE) == ""


@pytest.mark.needs("root")
def test_a_folder_that_may_not_be_entered_is_no_reason_to_delete(store: Store) -> None:
    """The service user can list the names, but reads no lease: nobody's bytes are free for that."""
    os.chown(store.layout.leases, USER, USER)
    store.layout.leases.chmod(0o744)
    reported = as_user(SERVICE, lambda: prune.prune(store.layout, ALL_OLD, prune.no_jobs), group=SERVICE)
    assert reported.startswith("PublishError")
    assert "not known what is in use" in reported


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_file_system_that_fails_is_no_reason_to_delete(
    tmp_path: Path, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(tmp_path)
    leases.prepare(layout)
    path = lease(layout, "honest.json", "v1.0")
    real = os.open

    def failing(name: object, *arguments: int) -> int:
        if name == path:
            raise OSError(error, os.strerror(error), str(path))
        return real(name, *arguments)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(PublishError, match="not known what is in use"):
        leases.read_all(layout)


@pytest.mark.needs("root", "setfacl")
def test_the_importers_lease_is_readable_whatever_umask_and_default_acl(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["setfacl", "-d", "-m", f"u:{SERVICE}:---,o::-", store.layout.leases], check=True)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    settings = pyxis_importer.Settings({"schema": 1, "store": str(store.root)})
    umask = 0o777
    assert as_user(USER, lambda: pyxis_importer.get(settings, "demo:v2.0"), group=USER, umask=umask) == ""

    def read() -> None:
        assert [each.job for each in leases.read_all(store.layout) if each.job] == ["17"]

    assert as_user(SERVICE, read, group=SERVICE) == ""
