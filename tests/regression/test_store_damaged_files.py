"""A damaged file of one image was "a defect of sqshpipe" for all of them, and was met first after the commit.

Now it is a sentence that names the file, for that image alone, and `store rebuild` has a way out.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.errors import ConfigError, PublishError
from pipeline.store import prune, restore, sealed
from pipeline.store.retention import Policy
from pipeline.store.store import Store
from tests.support.command_line import app
from tests.support.store.releases import new_store, publish

NOW = Policy(keep=1, named_grace=timedelta(0), delete_after=timedelta(0))
AMD64 = "linux/amd64"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = new_store(tmp_path / "containers")
    for version in ("v1.0", "v1.1", "v1.2"):
        publish(store, version)
        publish(store, version, f"other {version}".encode(), image="other")
    return store


def overwrite(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["index.json", ".meta/head.json", "SHA256SUMS"])
def test_a_byte_that_is_no_text_in_one_cache_stops_nobody(store: Store, name: str) -> None:
    (store.root / "demo" / name).write_bytes(b'{"schema": 1, \xff')
    publish(store, "v1.3", image="other")
    store.mark("other:v1.0", "yank")
    publish(store, "v1.3")
    assert store.resolve("demo").version == store.resolve("other").version == "v1.3"
    prune.prune(store.layout, NOW, prune.no_jobs)
    assert set(json.loads(store.layout.manifest.read_bytes())["images"]) == {"demo", "other"}
    assert store.rebuild() == []


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"[" * 100_000,
        b'{"schema": 1, "image": "demo", "version": "v1.0", "version": "v1.0"}',
        b'{"schema": 1, "image": "demo", "version": "\\ud800"}',
        b'{"schema": 1, "image": "demo", "version": "v1.0", "sha256": 7, "size": true}',
        b'{"schema": 1, "image": "demo", "checks": 7, "version": "v1.0", "size": 1, "sha256": "%s"}'
        % (b"a" * 64),
        b"\xff",
        b"",
    ],
)
def test_what_is_no_record_or_event_is_one_sentence(store: Store, content: bytes) -> None:
    record, event = store.layout.record("demo", "v1.0", AMD64), store.layout.event("demo", 1)
    overwrite(record, content)
    with pytest.raises(sealed.UnreadableError, match=r"v1\.0\.json is damaged"):
        store.resolve("demo:v1.0")
    assert store.resolve("demo").version == "v1.2"
    overwrite(event, content)
    with pytest.raises(sealed.UnreadableError, match=r"00000001\.json is damaged"):
        publish(store, "v1.3")
    with pytest.raises(sealed.UnreadableError, match=r"00000001\.json is damaged"):
        store.promote("demo:v1.1", "stable")
    assert not store.layout.record("demo", "v1.3", AMD64).exists(), "refused before the commit"
    assert publish(store, "v1.3", image="other").state == "published"
    listed = CliRunner().invoke(app, ["list", "--store", str(store.root)])
    assert "other:v1.3" in listed.stdout


@pytest.mark.parametrize("kind", ["folder", "fifo", "loop"])
@pytest.mark.parametrize("name", ["v1.0.json", ".meta/events/00000002.json", "index.json", ".meta/head.json"])
def test_what_is_no_file_ends_no_verb_without_a_sentence(store: Store, kind: str, name: str) -> None:
    path = store.root / "demo" / name
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(path.name)
    for words in (
        ["list"],
        ["resolve", "demo:v1.0"],
        ["store", "prune", "--no-slurm"],
        ["store", "scrub"],
        ["promote", "demo:v1.1", "x"],
    ):
        ended = CliRunner().invoke(app, [*words, "--store", str(store.root)])
        assert getattr(ended.exception, "exit_code", 0) in (0, 7, 8), ended.exception
    assert publish(store, "v1.3", image="other").state == "published"


def test_a_pipe_or_a_loop_in_place_of_an_image(store: Store) -> None:
    os.mkfifo(store.root / "pipe")
    (store.root / "loop").symlink_to("loop")
    assert store.images() == ["demo", "other"]
    report = prune.prune(store.layout, NOW, prune.no_jobs)
    assert [message.rsplit("/")[-1] for message in report.broken] == [
        "loop is neither a folder nor a file",
        "pipe is neither a folder nor a file",
    ]


def lose_record(store: Store) -> Path:
    path = store.layout.record("demo", "v1.0", AMD64)
    overwrite(path, path.read_bytes()[:-40])
    return path


def test_no_bytes_go_while_a_record_cannot_be_read_and_restore_is_the_way_out(store: Store) -> None:
    path = lose_record(store)
    for _ in range(3):
        report = prune.prune(store.layout, NOW, prune.no_jobs)
    assert report.blobs == []
    assert [one.action for one in report.verdicts if one.image == "other"] == ["keep", "wait", "wait"]
    assert {one.action for one in report.verdicts if one.image == "demo"} == {"keep"}
    reported = CliRunner().invoke(app, ["store", "rebuild", "--store", str(store.root)])
    assert isinstance(reported.exception, PublishError), "exit code 8"
    assert path.read_bytes()[-1:] != b"}", "nothing is restored unasked"
    restore.restore(store.layout, "demo:v1.0", AMD64)
    assert store.rebuild() == []
    again = store.resolve("demo:v1.0")
    assert (again.sha256, again.size) == (hashlib.sha256(b"v1.0").hexdigest(), 4)
    assert again.scan["status"] == "external"
    assert again.created == "2026-01-01T00:00:00Z", "as the index said"
    assert list(path.parent.glob(".damaged.v1.0.json.*")), "moved aside, not deleted"
    with pytest.raises(ConfigError, match="is sound"):
        restore.restore(store.layout, "demo:v1.0", AMD64)
    with pytest.raises(ConfigError, match="nothing in"):
        restore.restore(store.layout, "demo:v7", AMD64)
    prune.prune(store.layout, NOW, prune.no_jobs)
    assert prune.prune(store.layout, NOW, prune.no_jobs).broken == []
    assert not store.layout.blob(hashlib.sha256(b"other v1.0").hexdigest()).exists()


def test_a_tombstone_where_the_bytes_are_gone(store: Store) -> None:
    lose_record(store)
    with pytest.raises(PublishError, match=r"the bytes of demo:v1\.0 are there"):
        restore.bury(store.layout, "demo:v1.0", AMD64)
    store.layout.blob(hashlib.sha256(b"v1.0").hexdigest()).unlink()
    with pytest.raises(PublishError, match="its bytes are gone"):
        restore.restore(store.layout, "demo:v1.0", AMD64)
    restore.bury(store.layout, "demo:v1.0", AMD64)
    assert store.rebuild() == []
    with pytest.raises(PublishError, match="pruned"):
        store.resolve("demo:v1.0")
    with pytest.raises(PublishError, match="other content"):
        publish(store, "v1.0", b"another")
    assert store.resolve("demo").version == "v1.2"


def test_a_version_that_lost_its_record_takes_no_other_content(store: Store) -> None:
    store.layout.record("demo", "v1.0", AMD64).unlink()
    for content in (b"another", b"v1.0"):
        with pytest.raises(PublishError, match="its record is missing"):
            publish(store, "v1.0", content)


@pytest.mark.parametrize("missing", [True, False])
def test_an_event_without_effect_in_place_of_a_lost_one(store: Store, missing: bool) -> None:
    path = store.layout.event("demo", 2)
    if missing:
        path.unlink()
    else:
        overwrite(path, b"{")
    with pytest.raises(PublishError, match="00000002"):
        store.promote("demo:v1.1", "stable")
    restore.replace_event(store.layout, "demo:2")
    assert store.promote("demo:v1.1", "stable")
    assert store.resolve("demo").version == "v1.2"
    assert store.rebuild() == []
    for name in ("demo:2", "demo:99", "demo:x"):
        with pytest.raises(ConfigError):
            restore.replace_event(store.layout, name)


@pytest.mark.parametrize("option", ["--grace", "--delete-after"])
@pytest.mark.parametrize("value", ["9999999d", "99999999999999999999d", "²d", "d", "1e3d"])
def test_a_time_beyond_the_calendar_is_a_sentence(store: Store, option: str, value: str) -> None:
    ended = CliRunner().invoke(
        app, ["store", "prune", "--no-slurm", option, value, "--store", str(store.root)]
    )
    assert isinstance(ended.exception, ConfigError)
    assert option in ended.exception.message


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_defect(store: Store, closed: str) -> None:
    for verb, code in (
        ("list", 0),
        ("resolve demo --platform linux/amd64", 0),
        ("resolve nothing", 2),
        ("--help", 0),
    ):
        shell = f'"{sys.executable}" -m pipeline {verb} --store "{store.root}" {closed}'
        if verb == "--help":
            shell = f'"{sys.executable}" -m pipeline --help {closed}'
        ended = subprocess.run(
            ["/bin/sh", "-c", shell], capture_output=True, text=True, timeout=60, check=False
        )
        assert (ended.returncode, "Traceback" in ended.stderr) == (code, False), (verb, ended.stderr)
