"""Prune: what stays, what is hidden, what is deleted, and why."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from pipeline.errors import PublishError, ToolError
from pipeline.store import leases, prune
from pipeline.store.prune import no_jobs
from pipeline.store.retention import LiveJobs, Policy
from pipeline.store.store import Store
from pipeline.system import alive
from pipeline.system import temporary as writer
from tests.support.store.releases import folder, new_store, publish

NOW = Policy(keep=1, named_grace=timedelta(0), delete_after=timedelta(0))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = new_store(tmp_path / "containers")
    for version in ("v1.0", "v1.1", "v1.2"):
        publish(store, version)
    return store


def actions(report: prune.PruneReport) -> dict[str, str]:
    return {verdict.version: verdict.action for verdict in report.verdicts}


def test_first_hidden_then_deleted_and_the_version_stays_taken(store: Store) -> None:
    old = store.resolve("demo:v1.0").path
    assert actions(prune.prune(store.layout, NOW, no_jobs)) == {
        "v1.0": "hide",
        "v1.1": "hide",
        "v1.2": "keep",
    }
    assert old.exists()
    with pytest.raises(PublishError, match="hidden: older than what is kept"):
        store.resolve("demo:v1.0")
    assert not (store.root / "demo/v1.0.sqsh").is_symlink()
    report = prune.prune(store.layout, NOW, no_jobs)
    assert actions(report) == {"v1.0": "delete", "v1.1": "delete", "v1.2": "keep"}
    assert (len(report.blobs), report.freed) == (2, 8)
    assert not old.exists()
    with pytest.raises(PublishError, match="pruned"):
        store.resolve("demo:v1.0")
    with pytest.raises(PublishError, match="other content"):
        publish(store, "v1.0", b"other content")
    assert actions(prune.prune(store.layout, NOW, no_jobs))["v1.0"] == "gone"


def test_the_same_content_brings_a_pruned_version_back(store: Store) -> None:
    for _ in range(2):
        prune.prune(store.layout, NOW, no_jobs)
    assert publish(store, "v1.0").state == "published"
    assert store.resolve("demo:v1.0").path.read_bytes() == b"v1.0"
    assert store.resolve("demo").version == "v1.2"


def test_bytes_that_another_version_has_stay(store: Store) -> None:
    shared = publish(store, "v1.3", b"v1.0").path
    for _ in range(2):
        report = prune.prune(store.layout, NOW, no_jobs)
    assert actions(report)["v1.0"] == "delete"
    assert shared.exists()
    assert store.resolve("demo").version == "v1.3"


def test_what_counts_as_needed(store: Store) -> None:
    publish(store, "v1.3")
    publish(store, "v1.4")
    store.promote("demo:v1.0", "stable")
    store.mark("demo:v1.1", "keep", reason="paper")
    path = leases.take(store.layout, store.resolve("demo:v1.2"), seconds=60)
    jobs = LiveJobs(digests=frozenset({store.resolve("demo:v1.3").sha256}))
    reasons = {v.version: v.reason for v in prune.prune(store.layout, NOW, lambda: jobs).verdicts}
    assert reasons["v1.0"] == "named by stable"
    assert reasons["v1.1"] == "marked keep"
    assert reasons["v1.2"].startswith("leased by person-")
    assert reasons["v1.3"] == "named by the comment of a Slurm job"
    assert reasons["v1.4"] == "named by latest"
    leases.drop(path)
    after = actions(prune.prune(store.layout, NOW, no_jobs))
    assert (after["v1.2"], after["v1.3"]) == ("hide", "hide")


def test_a_channel_protects_for_a_while_after_it_has_left(store: Store) -> None:
    policy = Policy(keep=1, named_grace=timedelta(days=1), delete_after=timedelta(0))
    reasons = {v.version: v.reason for v in prune.prune(store.layout, policy, no_jobs).verdicts}
    assert reasons["v1.1"].startswith("a channel named it until 20")


def test_slurm_not_reachable_means_keep(store: Store) -> None:
    def unreachable() -> LiveJobs:
        raise ToolError("squeue does not answer")

    prune.prune(store.layout, NOW, no_jobs)
    before = folder(store.layout.blobs)
    report = prune.prune(store.layout, NOW, unreachable)
    assert set(actions(report).values()) == {"keep"}
    assert report.unreachable == "squeue does not answer"
    assert folder(store.layout.blobs) == before


def test_a_lease_on_hidden_bytes_holds_them(store: Store) -> None:
    path = leases.take(store.layout, store.resolve("demo:v1.0"), seconds=60)
    jobs = LiveJobs()
    store.mark("demo:v1.0", "yank")
    prune.prune(store.layout, NOW, no_jobs)
    leases.drop(path)
    prune.prune(store.layout, NOW, no_jobs)
    path.write_text("{")
    held = leases.take(store.layout, store.releases("demo")[-1], seconds=60)
    assert actions(prune.prune(store.layout, NOW, lambda: jobs))["v1.0"] == "wait"
    leases.drop(held)
    assert actions(prune.prune(store.layout, NOW, lambda: jobs))["v1.0"] == "delete"


def write_lease(store: Store, **changes: object) -> Path:
    release = store.resolve("demo:v1.0")
    data = {
        "schema": 1,
        "sha256": release.sha256,
        "host": "n1",
        "job": "7",
        "uid": os.getuid(),
        "cluster": "here",
        "created": "2026-01-01T00:00:00Z",
        "expires": "2099-01-01T00:00:00Z",
        **changes,
    }
    leases.prepare(store.layout)
    path = store.layout.leases / f"job-{len(folder(store.layout.leases))}.json"
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"job": "1"}, True),
        ({"job": "1", "expires": "2026-01-01T00:00:00Z"}, True),  # its job was given more time
        ({"job": "7"}, False),
        ({"job": "7", "cluster": "elsewhere"}, True),
        ({"job": "7", "cluster": ""}, True),  # whose job it is cannot be asked
        ({"job": "7", "cluster": "elsewhere", "expires": "2026-01-01T00:00:00Z"}, False),
        ({"job": "1", "uid": 12345}, False),  # somebody else's word
        ({"uid": "me"}, False),
        ({"sha256": None}, False),
    ],
)
def test_whose_lease_counts(store: Store, changes: dict[str, object], kept: bool) -> None:
    write_lease(store, **changes)
    jobs = LiveJobs(ids=frozenset({"1"}), cluster="here")
    assert (actions(prune.prune(store.layout, NOW, lambda: jobs))["v1.0"] == "keep") is kept


def test_a_lease_cannot_be_a_trap(store: Store, tmp_path: Path) -> None:
    leases.prepare(store.layout)
    os.mkfifo(store.layout.leases / "pipe.json")
    (store.layout.leases / "link.json").symlink_to("/dev/zero")
    (store.layout.leases / "deep.json").write_text("[" * 60000)
    (store.layout.leases / "big.json").write_text(" " * 70000)
    assert leases.read_all(store.layout) == []
    assert store.layout.leases.stat().st_mode & 0o7777 == 0o1777


def test_a_dry_run_foresees_and_changes_nothing(store: Store) -> None:
    prune.prune(store.layout, NOW, no_jobs)
    before = {path: path.lstat().st_mtime_ns for path in store.root.rglob("*")}
    foreseen = prune.prune(store.layout, NOW, no_jobs, dry_run=True)
    assert {path: path.lstat().st_mtime_ns for path in store.root.rglob("*")} == before
    done = prune.prune(store.layout, NOW, no_jobs)
    assert (foreseen.verdicts, sorted(foreseen.blobs), foreseen.freed) == (
        done.verdicts,
        sorted(done.blobs),
        done.freed,
    )


def test_orphans_go_only_when_their_writer_is_dead(store: Store) -> None:
    script = (
        "from pathlib import Path; from pipeline.store.store import Store; import sys, time\n"
        "with Store(Path(sys.argv[1])).staging() as path:\n"
        "    path.write_bytes(b'half'); print(path, flush=True); time.sleep(60)\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", script, str(store.root)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    staged = Path(writer.stdout.readline().strip())
    report = prune.prune(store.layout, NOW, no_jobs)
    assert staged.exists()
    assert report.kept == [(str(staged.relative_to(store.root)), "its writer lives")]
    writer.kill()
    writer.wait()
    writer.stdout.close()
    report = prune.prune(store.layout, NOW, no_jobs)
    assert not staged.exists()
    assert (str(staged.relative_to(store.root)), "its writer is dead") in report.files


def test_a_writer_elsewhere_counts_as_dead_when_it_wrote_nothing_for_long(store: Store) -> None:
    elsewhere = store.layout.blobs / ".tmp.0123456789ab.4026531836.77.123.aabbccddeeff.sqsh"
    elsewhere.write_bytes(b"half")
    prune.prune(store.layout, NOW, no_jobs)
    assert elsewhere.exists()
    old = time.time() - 8 * 86400
    os.utime(elsewhere, (old, old))
    prune.prune(store.layout, NOW, no_jobs)
    assert not elsewhere.exists()


def test_bytes_without_a_record_go_when_they_are_old(store: Store) -> None:
    orphan = store.layout.blob("f" * 64)
    orphan.write_bytes(b"nobody's")
    patient = Policy(keep=5, delete_after=timedelta(days=1))
    prune.prune(store.layout, patient, no_jobs)
    assert orphan.exists()
    assert prune.prune(store.layout, NOW, no_jobs).freed >= 8
    assert not orphan.exists()


def test_bytes_taken_away_come_back_when_a_publisher_needs_them_at_that_moment(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record is committed after prune read the records, and the publisher looked before the bytes
    went.
    """
    prune.prune(store.layout, NOW, no_jobs)
    rename, done = Path.rename, []

    def publish_first(self: Path, target: Path) -> Path:
        if str(target).endswith(".pruned") and not done:
            done.append(True)
            publish(store, "v1.3", b"v1.0")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", publish_first)
    prune.prune(store.layout, NOW, no_jobs)
    assert store.resolve("demo").path.read_bytes() == b"v1.0"
    assert not list(prune.temporaries(store.layout))


def test_a_lease_that_the_file_system_cannot_read_holds_everything(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows what it holds, so nothing is hidden: found by failing every call of a prune in turn."""
    path = write_lease(store, job="1")
    real = os.open

    def refuse(name: object, *arguments: int, **named: int | None) -> int:
        if name == path:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(name, *arguments, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PublishError, match="cannot be read"):
        prune.prune(store.layout, NOW, no_jobs)
    monkeypatch.undo()
    assert {line.state for line in store.listed("demo")} == {"published"}


def test_a_store_that_cannot_be_read_is_reported_in_a_sentence(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "lstat", refuse)
    for action in (lambda: store.resolve("demo"), lambda: store.release("demo", "v1.0"), store.images):
        with pytest.raises(PublishError, match="not allowed while reading"):
            action()


def test_a_record_that_cannot_be_read_holds_all_bytes_that_might_be_its(store: Store) -> None:
    """As after an upgrade elsewhere: what a newer record names is not known here."""
    blob = store.resolve("demo:v1.0").path
    path = store.layout.record("demo", "v1.0", "linux/amd64")
    newer = json.loads(path.read_bytes()) | {"schema": 2}
    del newer["crc32"]
    path.chmod(0o644)
    path.write_text(json.dumps(newer))
    for cache in (store.layout.index("demo"), store.layout.head("demo")):
        cache.unlink()
    for _ in range(3):
        foreseen = prune.prune(store.layout, NOW, no_jobs, dry_run=True)
        report = prune.prune(store.layout, NOW, no_jobs)
    assert "has schema 2" in report.broken[0]
    assert blob.exists()
    reported = "there are records or events that cannot be read, and it may be theirs"
    assert (str(blob.relative_to(store.root)), reported) in foreseen.kept
    assert not list(prune.temporaries(store.layout))


def test_a_dry_run_gives_the_reason_of_every_file_that_stays_behind(store: Store) -> None:
    publish(store, "v1.3", b"v1.0")
    prune.prune(store.layout, NOW, no_jobs)
    store.layout.blob("f" * 64).write_bytes(b"nobody's")
    elsewhere = ".tmp.0123456789ab.4026531836.77.123.aabbccddeeff.sqsh"
    (store.layout.blobs / elsewhere).write_bytes(b"half")
    release = store.resolve("demo")
    report = prune.prune(store.layout, NOW, no_jobs, dry_run=True)
    kept = dict(report.kept)
    assert kept[f"blobs/sha256/{elsewhere}"].startswith("written from another machine")
    assert kept[release.file] == "demo:v1.0 goes, another release has it too"
    gone = dict(report.files)
    assert gone[f"blobs/sha256/{'f' * 64}.sqsh"] == "no record names it"
    assert sorted(gone.values()).count("no release has it any more") == 2
    patient = prune.prune(store.layout, Policy(keep=1, named_grace=timedelta(0)), no_jobs, dry_run=True)
    assert dict(patient.kept)[f"blobs/sha256/{'f' * 64}.sqsh"].startswith(
        "no record names it; deleted after 20"
    )
    used = LiveJobs(digests=frozenset({"f" * 64}))
    assert (
        "comment of a Slurm job"
        in dict(prune.prune(store.layout, NOW, lambda: used, dry_run=True).kept)[
            f"blobs/sha256/{'f' * 64}.sqsh"
        ]
    )


def test_a_job_that_names_bytes_at_the_last_moment_gets_them_back(store: Store) -> None:
    prune.prune(store.layout, NOW, no_jobs)
    release = next(one for one in store.releases("demo") if one.version == "v1.0")
    answers = iter([LiveJobs(), LiveJobs(), LiveJobs(digests=frozenset({release.sha256}))])
    report = prune.prune(store.layout, NOW, lambda: next(answers))
    assert release.path.read_bytes() == b"v1.0"
    assert release.sha256 not in report.blobs
    assert not list(prune.temporaries(store.layout))


def test_slurm_lost_on_the_way_gives_everything_back(store: Store) -> None:
    prune.prune(store.layout, NOW, no_jobs)
    before = folder(store.layout.blobs)
    asked: list[int] = []

    def lost() -> LiveJobs:
        asked.append(1)
        if len(asked) == 3:
            raise ToolError("squeue does not answer")
        return LiveJobs()

    assert prune.prune(store.layout, NOW, lost).unreachable == "squeue does not answer"
    assert folder(store.layout.blobs) == before


def test_what_a_killed_prune_moved_away_is_judged_anew(store: Store) -> None:
    """Not deleted because its mover is dead: a job may use it, and Slurm may not answer now."""

    def unreachable() -> LiveJobs:
        raise ToolError("squeue does not answer")

    blob = store.resolve("demo:v1.0").path
    name = writer.temporary_name(f".{blob.stem}.pruned").replace(f".{os.getpid()}.", ".4194304.")
    blob.rename(blob.with_name(name))
    prune.prune(store.layout, NOW, unreachable)
    assert blob.read_bytes() == b"v1.0"


def test_a_writer_that_proc_does_not_show_lives(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc mounted with hidepid shows other users' processes to nobody; a signal still finds them."""
    staged = store.layout.blobs / writer.temporary_name(".sqsh").replace(f".{os.getpid()}.", ".1.")
    staged.write_bytes(b"half")
    monkeypatch.setattr(alive, "_stat", lambda _: ("", ""))

    def refuse(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert not writer.is_orphan(staged)
    monkeypatch.setattr(os, "kill", lambda *_: (_ for _ in ()).throw(ProcessLookupError))
    assert writer.is_orphan(staged)
