"""In the folder for all users, one file that its owner let nobody read stopped every prune; and what was no
lease, a million pipes for instance, stayed for ever and was looked at by each.
"""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

import pytest

from pipeline.store import leases, prune
from pipeline.store.store import Store
from tests.support.faults.crash_actions import ALL_OLD
from tests.support.store.releases import new_store, publish


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = new_store(tmp_path / "store")
    for version in ("v1.0", "v2.0"):
        publish(store, version)
    leases.prepare(store.layout)
    return store


def test_a_closed_lease_holds_nothing_and_stops_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.layout.leases / "mine-alone.json"
    path.write_text("{}")
    path.chmod(0o600)
    real = os.open

    # as the service user meets it; these tests may be root
    def refuse(name: object, *arguments: int, **named: int | None) -> int:
        if name == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(name, *arguments, **named)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(os, "open", refuse)
    assert leases.read_all(store.layout) == []
    prune.prune(store.layout, ALL_OLD, prune.no_jobs)


def test_what_never_was_a_lease_goes_when_none_could_last_so_long(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = store.layout.leases
    os.mkfifo(folder / "fifo.json")
    (folder / "link.json").symlink_to("/etc/passwd")
    (folder / "nonsense.json").write_text("[" * 1000)
    (folder / ".job-1.0-node-0.json.77").write_text("half")
    (folder / "empty").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "x").write_text("x")
    held = {"sha256": "a" * 64, "uid": os.getuid(), "job": "1", "expires": "2099-01-01T00:00:00Z"}
    (folder / "job.json").write_text(json.dumps(held))
    names = {entry.name for entry in folder.iterdir()}
    leases.remove_remains(store.layout, {"job.json"}, time.time())
    assert {entry.name for entry in folder.iterdir()} == names, "all young"
    leases.remove_remains(store.layout, {"job.json"}, time.time() + leases.LONGEST_SECONDS + 60)
    assert {entry.name for entry in folder.iterdir()} == {"full", "job.json"}
    assert Path("/etc/passwd").exists()


def test_prune_clears_them(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (store.layout.leases / "nonsense.json").write_text("x")
    prune.prune(store.layout, ALL_OLD, prune.no_jobs)
    assert list(store.layout.leases.iterdir())
    monkeypatch.setattr(leases, "LONGEST_SECONDS", -60.0)
    prune.prune(store.layout, ALL_OLD, prune.no_jobs)
    assert list(store.layout.leases.iterdir()) == []
