"""Many gets at once, by different users, while releases are published, promoted, yanked and pruned."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, PublishError
from pipeline.node.install import ImporterSettings, install
from pipeline.store import leases
from pipeline.store.prune import prune
from pipeline.store.retention import LiveJobs, Policy
from pipeline.store.store import Store
from tests.integration.cluster.conftest import record_of
from tests.support.store.handmade_store import HandmadeStore, squashfs_like
from tests.support.store.releases import new_store

AT_ONCE = 64
ROUNDS = 3
ROUNDS_AT_MOST = 12
USERS = (65534, 60001, 60002, 60003)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that other users can walk through; pytest keeps its own for itself."""
    with tempfile.TemporaryDirectory(prefix="sqshpipe-gets-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def program(place: Path) -> Path:
    if os.uname().machine not in ("x86_64", "aarch64"):
        pytest.skip("no platform of this machine is published here")
    return install(ImporterSettings(store=place / "store", state=place / "state"), place / "prefix")


def make(folder: Path, version: str) -> Path:
    file = folder / f"{version}.sqsh"
    file.write_bytes(squashfs_like(version, 16384))
    return file


def get(program: Path, reference: str, job: int, user: int) -> subprocess.Popen[str]:
    return call([program, "get", f"docker://{reference}"], job, user)


def call(argv: list[str | Path], job: int, user: int) -> subprocess.Popen[str]:
    """What pyxis runs as a job's user."""
    who = {"user": user, "group": user, "extra_groups": []} if os.geteuid() == 0 else {}
    return subprocess.Popen(
        argv,
        env={"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **who,  # type: ignore[call-overload]
    )


@contextmanager
def meanwhile(store: Store, folder: Path, errors: list[BaseException]) -> Iterator[None]:
    """Publish, promote and prune, deleting too, without a pause for as long as the block runs."""
    over = threading.Event()

    def churn() -> None:
        number = 100
        policy = Policy(keep=3, named_grace=timedelta(0), delete_after=timedelta(seconds=4))
        while not over.is_set():
            number += 1
            version = f"v{number}"
            try:
                file = make(folder, version)
                stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + number))
                store.publish(record_of(file, version, stamp), file)
                store.promote(f"demo:{version}", "stable")
                prune(store.layout, policy, lambda: LiveJobs(cluster="x"))
            except BaseException as error:  # noqa: BLE001 - reported by the test
                errors.append(error)
                return

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)


def deleted(store: Store) -> int:
    """How many published versions have no bytes any more."""
    records = len(list((store.root / "demo").glob("v*.json")))
    return records - len(list((store.root / "blobs" / "sha256").glob("*.sqsh")))


def whole(name: str, asked: subprocess.Popen[str], pinned: Path) -> str:
    """The digest of the file that a get printed, which must be there, whole, and the one that was meant."""
    out, err = asked.communicate(timeout=60)
    assert asked.returncode == 0, f"{name}: {err}"
    path = Path(out.removesuffix("\n"))
    assert "\n" not in str(path)
    data = path.read_bytes()
    assert len(data) == 16384
    assert path.stem == hashlib.sha256(data).hexdigest()
    assert name != "demo:v1" or path == pinned
    return path.stem


def test_no_get_ever_sees_a_wrong_missing_or_partial_file(place: Path, program: Path) -> None:
    store = new_store(place / "store")
    first = make(place, "v1")
    store.publish(record_of(first, "v1", "2026-01-01T00:00:01Z"), first)
    store.promote("demo:v1", "stable")
    store.mark("demo:v1", "keep")
    leases.prepare(store.layout)
    pinned = store.resolve("demo:v1").path
    errors: list[BaseException] = []
    seen: set[str] = set()
    turns = 0
    with meanwhile(store, place, errors):
        while turns < ROUNDS or (deleted(store) < ROUNDS and turns < ROUNDS_AT_MOST):
            over = [(turns * AT_ONCE - number, USERS[number % len(USERS)]) for number in range(AT_ONCE)]
            turns += 1
            names = [
                ("demo", "demo:stable", "demo:v1", "demo:latest")[number % 4] for number in range(AT_ONCE)
            ]
            asked = [
                get(program, name, turns * AT_ONCE - number, USERS[number % len(USERS)])
                for number, name in enumerate(names)
            ]
            ended = [call([program, "release"], job, user) for job, user in over if turns > 1]
            for name, each in zip(names, asked, strict=True):
                seen.add(whole(name, each, pinned))
            assert {each.communicate(timeout=60) for each in ended} <= {("", "")}
    assert not errors, errors
    assert len(seen) > 2, "channels moved meanwhile"
    found = [json.loads(each.read_text()) for each in store.layout.leases.iterdir()]
    assert len(found) == AT_ONCE, "those of the last round"
    assert deleted(store) >= ROUNDS, "prune took what nobody held"
    assert {each["sha256"] for each in found} <= seen
    if os.geteuid() == 0:
        assert {each["uid"] for each in found} == set(USERS)


def test_prune_spares_what_a_step_holds_and_takes_it_afterwards(place: Path, program: Path) -> None:
    store = new_store(place / "store")
    for version in ("v1", "v2"):
        file = make(place, version)
        store.publish(record_of(file, version, f"2026-01-01T00:00:0{version[1]}Z"), file)
    leases.prepare(store.layout)
    assert get(program, "demo:v1", 7, os.getuid()).communicate(timeout=60)[0]
    held = store.resolve("demo:v1").path
    policy = Policy(keep=1, named_grace=timedelta(0), delete_after=timedelta(0))
    running = LiveJobs(ids=frozenset({"7"}), cluster="x")
    for _ in range(2):
        prune(store.layout, policy, lambda: running)
    assert store.resolve("demo:v1").path == held
    assert held.exists()
    for _ in range(2):
        subprocess.run([program, "release"], env={"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}, check=True)
    for _ in range(3):
        prune(store.layout, policy, lambda: LiveJobs(cluster="x"))
    assert not held.exists()
    with pytest.raises((ConfigError, PublishError)):
        store.resolve("demo:v1")
    out, err = get(program, "demo:v1", 8, os.getuid()).communicate(timeout=60)
    assert out == ""
    assert "pruned" in err


def test_a_yanked_version_is_refused_with_and_without_the_index(place: Path, program: Path) -> None:
    store = new_store(place / "store")
    for version in ("v1", "v2"):
        file = make(place, version)
        store.publish(record_of(file, version, f"2026-01-01T00:00:0{version[1]}Z"), file)
    store.mark("demo:v1", "yank", reason="wrong")
    for _ in range(2):
        out, err = get(program, "demo:v1", 8, os.getuid()).communicate(timeout=60)
        assert out == ""
        assert "withdrawn" in err
        assert (
            get(program, "demo:v2", 8, os.getuid()).communicate(timeout=60)[0]
            == f"{store.resolve('demo').path}\n"
        )
        store.layout.index("demo").unlink(missing_ok=True)


def test_gets_of_one_user_import_an_image_once(place: Path) -> None:
    HandmadeStore(place / "store")
    calls, enroot = place / "calls", place / "enroot"
    calls.touch()
    calls.chmod(0o666)
    enroot.write_text(
        f'#!/bin/sh\necho import >> {calls}\nsleep 1\nprintf hsqs > "$3"\nhead -c 200 /dev/zero >> "$3"\n'
    )
    enroot.chmod(0o755)
    program = install(
        ImporterSettings(store=place / "store", state=place / "state", missing="import", enroot=str(enroot)),
        place / "prefix",
    )
    asked = [get(program, "ubuntu:24.04", number, USERS[number % 2]) for number in range(16)]
    reported = [each.communicate(timeout=60) for each in asked]
    assert {err for _, err in reported} == {""}
    users = 2 if os.geteuid() == 0 else 1
    assert len({out for out, _ in reported}) == users, "users do not read each other's imports"
    assert calls.read_text().splitlines() == ["import"] * users
