"""What the importer reads ahead: sound profiles only, once a file, and nothing is left after the step."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipeline.node import pyxis_importer as importer
from pipeline.node.install import ImporterSettings, install
from tests.support.store.handmade_store import HandmadeStore, sealed
from tests.unit.node.test_pyxis_importer import in_job, settings, store

__all__ = ["store"]  # the fixture

SIZE = 4096
MOST = 1 << 30


def write_profile(store: HandmadeStore, version: str = "v1.1", number: int = 1, **change: Any) -> Path:
    """A profile that fits demo:VERSION, apart from `change`."""
    entry = json.loads((store.root / "demo" / f"{version}.json").read_bytes())
    table = {"schema": 1, "sha256": entry["sha256"], "size": entry["size"], "ranges": [[2048, 512], [0, 96]]}
    path = store.root / "demo" / ".meta" / version / f"startup-{number}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sealed(table | change))
    return path


def ranges(path: Path, limit: int = MOST) -> list[tuple[int, int]]:
    table = json.loads(path.read_bytes())
    sha256 = hashlib.sha256(b"").hexdigest() if table["sha256"] == "other" else table["sha256"]
    return importer.startup_ranges(str(path), sha256, SIZE, limit)


def test_ranges_come_in_their_order_up_to_the_limit(store: HandmadeStore) -> None:
    path = write_profile(store)
    assert ranges(path) == [(2048, 512), (0, 96)]
    assert ranges(path, 600) == [(2048, 512), (0, 88)]
    assert ranges(path, 100) == [(2048, 100)]
    assert ranges(path, 0) == []


BAD: dict[str, dict[str, Any]] = {
    "beyond": {"ranges": [[4000, 97]]},
    "far beyond": {"ranges": [[1 << 70, 1]]},
    "overlap": {"ranges": [[10, 10], [0, 11]]},
    "same twice": {"ranges": [[10, 10], [10, 10]]},
    "a million": {"ranges": [[0, 1]] * 1_000_000},
    "negative": {"ranges": [[-5, 10]]},
    "empty": {"ranges": [[5, 0]]},
    "fraction": {"ranges": [[0.5, 1]]},
    "truth": {"ranges": [[True, 1]]},
    "nested": {"ranges": [[[1], 1]]},
    "three": {"ranges": [[1, 1, 1]]},
    "object": {"ranges": {"0": 1}},
    "nothing": {"ranges": None},
    "another file": {"sha256": "other"},
    "another size": {"size": 4097},
    "newer": {"schema": 2},
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_false_profiles_are_refused(store: HandmadeStore, change: dict[str, Any]) -> None:
    with pytest.raises(importer.Refused):
        ranges(write_profile(store, **change))


def test_damaged_missing_and_large_files_are_refused(store: HandmadeStore) -> None:
    path = write_profile(store)
    good = path.read_bytes()
    sha256 = json.loads(good)["sha256"]
    bad = [good.replace(b"512", b"513"), good[:40], b"", b"[" * 100_000, good + b" " * (importer.PROFILE + 1)]
    for raw in bad:
        path.write_bytes(raw)
        with pytest.raises(importer.Refused):
            importer.startup_ranges(str(path), sha256, SIZE, MOST)
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(importer.Refused):
        importer.startup_ranges(str(path), sha256, SIZE, MOST)
    path.unlink()
    with pytest.raises(importer.Refused):
        importer.startup_ranges(str(path), sha256, SIZE, MOST)


def test_whatever_the_bytes_are_the_bounds_hold(store: HandmadeStore, tmp_path: Path) -> None:
    """Fuzz: refused, or ranges within the file, without overlaps, within the limit."""
    rng = random.Random(5)
    path, sha256 = tmp_path / "p.json", "a" * 64
    values: list[Any] = [0, 1, -1, 95, 4000, 4096, 1 << 63, 2.5, None, "1", [], {}, True]
    for _ in range(2000):
        pairs: Any = [[rng.choice(values), rng.choice(values)] for _ in range(rng.randint(0, 4))]
        if rng.random() < 0.2:
            pairs.insert(0, rng.choice(values))
        path.write_bytes(sealed({"sha256": sha256, "size": SIZE, "ranges": rng.choice([pairs, pairs, None])}))
        try:
            found = importer.startup_ranges(str(path), sha256, SIZE, limit := rng.choice([0, 50, MOST]))
        except importer.Refused:
            continue
        taken = sorted(found)
        assert all(start >= 0 and length > 0 and start + length <= SIZE for start, length in taken)
        assert all(a + length <= b for (a, length), (b, _) in pairwise(taken))
        assert sum(length for _, length in taken) <= limit


def test_the_newest_counts(store: HandmadeStore) -> None:
    for number in (1, 9, 10):
        path = write_profile(store, number=number)
    for name in ("startup-x.json", "startup-.json", "startup-²2.json", "startup-99.json.tmp", "sbom.json"):
        (path.parent / name).touch()
    assert importer.newest_profile(str(path.parent)) == str(path)


def test_all_ranges_are_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(5_000_000))
    assert importer.read_ahead(str(file), [(4_000_000, 1_000_000), (7, 3_000_001)]) == 4_000_001
    assert importer.read_ahead(str(file), [(4_999_999, 100)]) == 1
    assert importer.read_ahead(str(file), []) == 0
    assert importer.read_ahead(str(file), [(0, 100)], seconds=0) == 0


def test_the_limit_is_a_tenth_of_the_free_memory() -> None:
    assert importer.prefetch_limit(1000) == 1000
    assert 0 < importer.prefetch_limit(1 << 60) < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 9


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    in_job(monkeypatch)
    (tmp_path / "state" / "prefetch").mkdir(parents=True)
    return tmp_path / "state"


def started(store: HandmadeStore, state: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> list[str]:
    """Get demo, without a child; what would have been read ahead."""
    seen: list[str] = []
    monkeypatch.setattr(importer, "in_background", lambda _, sha256, holder, __: seen.append(holder))
    importer.get(settings(store, state=str(state), **more), "docker://demo")
    return seen


def test_none_is_started_without_a_reason(
    store: HandmadeStore, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert started(store, state, monkeypatch) == []  # no profile
    write_profile(store)
    assert started(store, state, monkeypatch, prefetch_mib=0) == []
    (state / "verified").mkdir()
    assert started(store, state, monkeypatch, verify=True) == []  # it has just been read whole
    assert len(started(store, state, monkeypatch, verify=True)) == 1  # known by its mark
    assert len(started(store, state, monkeypatch)) == 1
    monkeypatch.delenv("SLURM_JOB_ID")
    assert started(store, state, monkeypatch) == []  # nobody would end it


def wait_for(question: Any) -> None:
    end = time.monotonic() + 20
    while not question():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_one_child_a_file_that_release_ends(
    store: HandmadeStore, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sha256, step = str(state / "prefetch"), "a" * 64, importer.lease_stem()
    pid = importer.in_background(folder, sha256, step, lambda: time.sleep(600))
    try:
        assert is_alive(pid)
        wait_for(lambda: Path(f"/proc/{pid}/fd/1").readlink() == Path("/dev/null"))
        assert os.getsid(pid) == pid
        wait_for(lambda: len(list(Path(f"/proc/{pid}/fd").iterdir())) == 4)  # the lock and three to /dev/null
        assert importer.in_background(folder, sha256, step, lambda: time.sleep(600)) == 0
        other = importer.in_background(folder, "b" * 64, step, lambda: None)
        assert other > 0
        os.waitpid(other, 0)
        assert importer.in_background(folder, "b" * 64, step, lambda: None) == 0  # done a moment ago
        importer.end_prefetch(folder, "job-99.0-other-0")
        assert is_alive(pid)
        importer.release(settings(store, state=str(state)))
        wait_for(lambda: not is_alive(pid))
        assert list(Path(folder).iterdir()) == []
        importer.release(settings(store, state=str(state)))
    finally:
        if is_alive(pid):
            os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_what_another_user_reads_is_not_read_again(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, sha256, me = str(state / "prefetch"), "a" * 64, os.getuid()
    pid = importer.in_background(folder, sha256, "job-1", lambda: time.sleep(600))
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "getuid", lambda: me + 1)
            assert importer.in_background(folder, sha256, "job-2", lambda: None) == 0
            (mark,) = (state / "prefetch").iterdir()
            os.utime(mark, (0, time.time() - importer.PREFETCH_AGAIN - 1))
            assert not importer.is_fresh(str(mark)), "its step did not end, or nobody removed it"
            os.utime(mark, (0, time.time() + 3600))
            assert not importer.is_fresh(str(mark))
        importer.end_prefetch(folder, "job-1")
        assert not importer.is_fresh(str(mark))
        (state / "prefetch" / f"{sha256}-4711").symlink_to("/etc/passwd")
        (state / "prefetch" / f"{sha256}-4712").touch()  # it was made, and nothing has begun
        again = importer.in_background(folder, sha256, "job-2", lambda: None)
        assert again > 0
        os.waitpid(again, 0)
    finally:
        os.waitpid(pid, 0)


def test_a_planted_file_is_left_alone(state: Path, tmp_path: Path) -> None:
    folder, name = state / "prefetch", f"{'a' * 64}-{os.getuid()}"
    precious = tmp_path / "precious"
    precious.write_text("1 job-17.0-node7-0")
    (folder / name).hardlink_to(precious)
    assert importer.in_background(str(folder), "a" * 64, "x", lambda: None) == 0
    importer.end_prefetch(str(folder), "job-17.0-node7-0")
    assert precious.read_text() == "1 job-17.0-node7-0"
    (folder / name).unlink()
    (folder / name).symlink_to(precious)
    with pytest.raises(OSError, match="symbolic"):
        importer.in_background(str(folder), "a" * 64, "x", lambda: None)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert importer.in_background(str(folder), "a" * 64, "x", lambda: None) == 0
    importer.end_prefetch(str(folder), "x")


def test_a_link_that_goes_while_it_is_looked_at_costs_no_other_file(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the name and counting its links another user takes the planted one away."""
    planted, precious = state / "prefetch" / f"{'a' * 64}-{os.getuid()}", tmp_path / "precious"
    precious.write_text("kept")
    precious.chmod(0o600)
    os.utime(precious, (0, 0))
    planted.hardlink_to(precious)
    fstat = os.fstat

    def slow(descriptor: int) -> os.stat_result:
        planted.unlink(missing_ok=True)
        return fstat(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", slow)
        pid = importer.in_background(str(state / "prefetch"), "a" * 64, "job-1", lambda: None)
    if pid:
        os.waitpid(pid, 0)
    assert precious.read_text() == "kept"


def test_work_that_ended_long_ago_is_done_again_and_once(state: Path) -> None:
    folder, sha256 = state / "prefetch", "a" * 64
    mark = folder / f"{sha256}-{os.getuid()}"
    mark.write_text("1 job-1")
    mark.chmod(0o600)
    assert importer.in_background(str(folder), sha256, "job-2", lambda: None) == 0
    os.utime(mark, (0, time.time() - importer.PREFETCH_AGAIN - 1))
    pid = importer.in_background(str(folder), sha256, "job-2", lambda: None)
    assert mark.read_text() == f"{pid} job-2"
    assert importer.in_background(str(folder), sha256, "job-3", lambda: None) == 0
    os.waitpid(pid, 0)


def test_a_folder_that_cannot_be_listed_stops_no_job(
    store: HandmadeStore, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(path: str) -> list[str]:
        raise importer.Refused(f"cannot list {path}: Permission denied")

    write_profile(store)
    monkeypatch.setattr(importer, "list_folder", closed)
    assert importer.get(settings(store, state=str(state)), "docker://demo").endswith(".sqsh")


@pytest.mark.parametrize("profile", ["sound", "another file", "a million"])
def test_the_installed_program(store: HandmadeStore, tmp_path: Path, profile: str) -> None:
    """`get` answers at once with its pipe closed, the same path with any profile; nothing is left."""
    write_profile(store, **({} if profile == "sound" else BAD[profile]))
    state = tmp_path / "state"
    program = install(ImporterSettings(store=store.root, state=state), tmp_path / "prefix")
    env = {"SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0"}
    got = subprocess.run([program, "get", "docker://demo"], env=env, capture_output=True, timeout=10)
    assert got.returncode == 0, got.stderr
    assert got.stdout.endswith(b".sqsh\n")
    assert got.stderr == b""
    (mark,) = (state / "prefetch").iterdir()
    pid, _, holder = mark.read_text().partition(" ")
    assert holder.startswith("job-17.0-")
    wait_for(lambda: not is_alive(int(pid)))
    again = subprocess.run([program, "get", "docker://demo"], env=env, capture_output=True, timeout=10)
    assert again.stdout == got.stdout
    assert mark.read_text().startswith(pid)  # once
    subprocess.run([program, "release"], env=env, check=True, timeout=10)
    assert list((state / "prefetch").iterdir()) == []
