"""What the importer finds for what people write, and what it refuses."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.errors import ConfigError
from pipeline.node import pyxis_importer as importer
from pipeline.node.install import ImporterSettings, install
from pipeline.store import creation
from pipeline.store.events import KINDS, Change, Event
from pipeline.store.state import ImageState
from tests.support.store.handmade_store import HandmadeStore, sealed, squashfs_like
from tests.support.store.releases import new_store, publish

SOURCE = "sha256:" + "5" * 64
ECR = "123456789012.dkr.ecr.us-east-1.amazonaws.com"
BASE = ("nvcr.io/nvidia/pytorch:24.01-py3", "sha256:" + "7" * 64)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HandmadeStore:
    for name in list(os.environ):
        if name.startswith("SLURM"):
            monkeypatch.delenv(name)
    on_machine(monkeypatch, "x86_64")
    made = HandmadeStore(tmp_path / "store")
    made.release("demo", "v1.0", source=SOURCE, repository=f"{ECR}/containers")
    made.release("demo", "v1.1", repository=f"{ECR}/containers", created="2026-11-23T12:00:00Z")
    made.channel("demo", "latest", "v1.1")
    made.channel("demo", "stable", "v1.0")
    made.release("pytorch", "24.01-py3", base=BASE, source=BASE[1], repository=f"{ECR}/containers")
    return made


def on_machine(monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=machine, nodename="node7"))


def slurm_says(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


def in_job(monkeypatch: pytest.MonkeyPatch, job: str = "17", step: str = "0") -> None:
    slurm_says(monkeypatch, JOB_ID=job, STEP_ID=step)


def settings(store: HandmadeStore, **more: object) -> importer.Settings:
    return importer.Settings({"schema": 1, "store": str(store.root), **more})


def version_for(store: HandmadeStore, reference: str, **more: object) -> str:
    path = importer.get(settings(store, **more), f"docker://{reference}")
    image = reference.partition("@sha256")[0].rpartition("/")[2].rpartition("#")[2].partition(":")[0]
    links = {str(link.resolve()): link.name for link in (store.root / image).glob("v*.sqsh")}
    links |= {str(link.resolve()): link.name for link in (store.root / image).glob("2*.sqsh")}
    return links[path].removesuffix(".sqsh")


@pytest.mark.parametrize("missing", ["refuse", "import"])
@pytest.mark.parametrize("reference", ["demo", "demo:v1.0", f"{ECR}/containers/demo:v1.0", "demo@" + SOURCE])
@pytest.mark.parametrize("place", ["nothing", "empty", "other things", "dangling", "file"])
def test_a_store_that_is_not_mounted_is_no_unknown_image(
    place: str, reference: str, missing: str, tmp_path: Path
) -> None:
    """With missing: import a step would be sent to a registry under the name of an image of the store."""
    root = tmp_path / "fsx"
    if place in ("empty", "other things"):
        root.mkdir()
    if place == "other things":
        (root / "data").mkdir()
        (root / "data" / "v1.json").write_text('{"image": "data"}')
    if place == "dangling":
        root.symlink_to(tmp_path / "gone")
    if place == "file":
        root.write_text("mine")
    imported = tmp_path / "imported"
    enroot = tmp_path / "enroot"
    enroot.write_text(f"#!/bin/sh\ntouch {imported}\n")
    enroot.chmod(0o755)
    values = {"store": str(root), "missing": missing, "enroot": str(enroot), "state": str(tmp_path / "state")}
    with pytest.raises(importer.Refused) as reported:
        importer.get(importer.Settings({"schema": 1, **values}), f"docker://{reference}")
    assert not isinstance(reported.value, importer.NotPublished)
    assert f"there is no store at {root}: is its file system mounted" in str(reported.value)
    assert f"sqshpipe store create {root}" in str(reported.value)
    assert not imported.exists()
    program = tmp_path / "pyxis-importer"
    program.write_bytes(Path(importer.__file__).read_bytes())
    program.with_name("pyxis-importer.json").write_text(json.dumps({"schema": 1, **values}))
    done = subprocess.run([sys.executable, program, "get", f"docker://{reference}"], capture_output=True)
    assert done.returncode == 8, "as every verb that finds no store"


@pytest.mark.parametrize("kept", ["blobs", "manifest.json", "demo"])
def test_a_store_is_recognized_as_store_create_does(kept: str, tmp_path: Path) -> None:
    store = new_store(tmp_path / "store")
    publish(store, "v1.0")
    for path in list(store.root.iterdir()):
        if path.name != kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert importer.is_store(str(store.root)) is creation.is_store(store.layout) is True
    if kept == "demo":
        shutil.rmtree(store.root / "demo" / ".meta")
        assert importer.is_store(str(store.root)) is creation.is_store(store.layout) is True
        (store.root / "demo" / "v1.0.json").write_text("{}")
        assert importer.is_store(str(store.root)) is creation.is_store(store.layout) is False


@pytest.mark.parametrize(
    ("reference", "version"),
    [
        ("demo", "v1.1"),
        ("demo:latest", "v1.1"),
        ("demo:stable", "v1.0"),
        ("demo:v1.0", "v1.0"),
        (f"{ECR}/containers/demo:v1.0", "v1.0"),
        (f"{ECR}/containers/demo", "v1.1"),
        (f"{ECR}#containers/demo:stable", "v1.0"),
        (f"AWS@{ECR}#containers/demo:v1.0", "v1.0"),
        (f"AWS@{ECR}/containers/demo:v1.0", "v1.0"),
        (f"{ECR}/containers/demo@{SOURCE}", "v1.0"),
        (f"{ECR}#containers/demo@{SOURCE}", "v1.0"),
        (f"{ECR}/containers/demo:whatever@{SOURCE}", "v1.0"),
        (f"demo@{SOURCE}", "v1.0"),
        ("nvcr.io/nvidia/pytorch:24.01-py3", "24.01-py3"),
        ("nvcr.io#nvidia/pytorch:24.01-py3", "24.01-py3"),
        (f"$oauthtoken@nvcr.io#nvidia/pytorch@{BASE[1]}", "24.01-py3"),
    ],
)
def test_what_people_write_leads_to_the_release(store: HandmadeStore, reference: str, version: str) -> None:
    assert version_for(store, reference) == version
    for index in store.root.glob("*/index.json"):
        index.unlink()
    assert version_for(store, reference) == version, "by the records alone"


def test_a_digest_of_the_file_itself_is_found(store: HandmadeStore) -> None:
    sha256 = store.index("demo")["releases"]["v1.0"]["platforms"]["linux/amd64"]["sha256"]
    assert version_for(store, f"demo@sha256:{sha256}") == "v1.0"


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("demo:v1.00", "demo:v1.0"),
        ("demmo:v1.0", "did you mean one of: demo"),
        ("docker.io/library/demo:v1.0", "not published"),
        ("somebody/demo:v1.0", "not published"),
        ("evil.example.com/containers/demo:v1.0", "not published"),
        (f"{ECR}/other/demo:v1.0", "not published"),
        ("nvcr.io/nvidia/pytorch:24.02-py3", "24.01-py3"),
        (f"demo@sha256:{'9' * 64}", "not published"),
        ("demo@sha256:abc", "not an image reference"),
        ("../../etc/passwd", "not an image reference"),
        ("demo:../v1.0", "not published"),
        ("demo:", "not an image reference"),
        (".meta", "not an image reference"),
        ("", "not an image reference"),
    ],
)
def test_what_is_not_published_is_refused_with_what_is(
    store: HandmadeStore, reference: str, says: str
) -> None:
    with pytest.raises(importer.Refused) as refused:
        importer.get(settings(store), f"docker://{reference}")
    assert says in str(refused.value)


def test_other_schemes_are_no_images_of_the_store(store: HandmadeStore) -> None:
    with pytest.raises(importer.Refused, match="not an image reference"):
        importer.get(settings(store), "dockerd://demo:v1.0")


@pytest.mark.parametrize(
    ("reference", "advice"),
    [
        ("docker://hello.sqsh", "write ./hello.sqsh"),
        ("docker://team/hello.squashfs", "begins with / or ./"),
        ("dockerd://demo:v1.0", "has to be published first"),
        ("docker://127.0.0.1:5000#/team/x:v1", "127.0.0.1:5000#team/x:v1"),
        (f"docker://demo:v1.0@sha256:{'0' * 64}", "its digest is another one"),
        ("docker://UP//x", "write IMAGE:VERSION"),
    ],
)
def test_the_sentence_says_what_to_write(store: HandmadeStore, reference: str, advice: str) -> None:
    store.release("demo", "v1.0")
    with pytest.raises(importer.Refused) as refused:
        importer.find(settings(store), importer.Wanted(reference))
    assert advice in str(refused.value)
    assert "did you mean" not in str(refused.value)


def test_declared_registries_need_no_record(store: HandmadeStore) -> None:
    (store.root / "demo" / "v1.0.json").unlink()
    reference = "mirror.example.com/x/demo:v1.0"
    assert version_for(store, reference, registries=["mirror.example.com/x/"]) == "v1.0"
    with pytest.raises(importer.NotPublished):
        importer.get(settings(store), reference)


@pytest.mark.parametrize("state", ["yanked", "hidden", "pruned", "damaged"])
def test_a_version_that_is_not_to_be_started_is_refused(store: HandmadeStore, state: str) -> None:
    digest = "sha256:" + "6" * 64
    store.release("demo", "v0.9", source=digest, state=state)
    for _ in range(2):
        for reference in ("demo:v0.9", f"{ECR}/containers/demo@{digest}"):
            with pytest.raises(importer.Refused, match=f"demo:v0.9 is {importer.STATES[state]}"):
                importer.get(settings(store), reference)
        (store.root / "demo" / "index.json").unlink(missing_ok=True)


def test_each_node_takes_its_platform(store: HandmadeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    arm = store.release("demo", "v1.1", platform="linux/arm64")
    intel = importer.get(settings(store), "demo")
    on_machine(monkeypatch, "aarch64")
    assert importer.get(settings(store), "demo") == str(arm) != intel
    with pytest.raises(importer.NotPublished, match="not published for linux/arm64, only for linux/amd64"):
        importer.get(settings(store), "demo:v1.0")
    (store.root / "demo" / "index.json").unlink()
    assert importer.get(settings(store), "demo:v1.1") == str(arm)


def damage(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        path.chmod(0o644)
        path.write_bytes(change(path.read_bytes()))

    return rewrite


@pytest.mark.parametrize(
    "change",
    [
        damage(lambda data: data[:-1]),
        damage(lambda data: b""),
        damage(lambda data: b"\0" * len(data)),
        damage(lambda data: data[:28] + b"\3\0" + data[30:]),
        damage(lambda data: data[:40] + (1 << 40).to_bytes(8, "little") + data[48:]),
        Path.unlink,
    ],
    ids=["cut", "empty", "zeros", "format 3", "superblock larger than file", "gone"],
)
def test_a_damaged_file_is_refused_and_leaves_no_lease(
    store: HandmadeStore, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    in_job(monkeypatch)
    change((store.root / "demo" / "v1.0.sqsh").resolve())
    with pytest.raises(importer.Refused, match=r"damaged|cannot read"):
        importer.get(settings(store), "demo:v1.0")
    assert not list((store.root / "leases").iterdir())


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "nonsense", '{"releases": [1]}', '{"releases": {"v1.0": 7}}', "[" * 100_000]
)
def test_a_broken_index_is_not_believed(store: HandmadeStore, text: str) -> None:
    (store.root / "demo" / "index.json").write_text(text)
    assert version_for(store, "demo:v1.0") == "v1.0"
    assert version_for(store, "demo") == "v1.1"
    assert version_for(store, f"demo@{SOURCE}") == "v1.0"


def without_checksum(path: Path) -> None:
    table = json.loads(path.read_text())
    del table["crc32"]
    path.write_text(json.dumps(table))


def one_digit(path: Path) -> None:
    raw = path.read_bytes()
    place = raw.index(b'"sha256": "') + 20
    path.write_bytes(raw[:place] + (b"1" if raw[place : place + 1] != b"1" else b"2") + raw[place + 1 :])


def other_channel(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"latest": "v1.1"', b'"latest": "v1.0"'))


def other_state(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"published"', b'"pruned"'))


def of_another_image(path: Path) -> None:
    path.write_bytes(sealed(json.loads(path.read_text()) | {"image": "other"}))


def ahead_of_the_events(path: Path) -> None:
    path.write_bytes(sealed(json.loads(path.read_text()) | {"events": 9, "channels": {"latest": "v1.0"}}))


def behind_the_events(path: Path) -> None:
    path.write_bytes(sealed(json.loads(path.read_text()) | {"events": 1, "channels": {"latest": "v1.0"}}))


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link(path: Path) -> None:
    other = path.with_name(".other")
    other.write_bytes(sealed(json.loads(path.read_text()) | {"channels": {"latest": "v1.0"}}))
    path.unlink()
    path.symlink_to(other)


@pytest.mark.parametrize(
    "change",
    [
        *(without_checksum, one_digit, other_channel, other_state, of_another_image),
        *(ahead_of_the_events, behind_the_events, a_pipe, a_link, Path.unlink),
    ],
)
def test_whatever_an_index_claims_records_and_events_decide(
    store: HandmadeStore, change: Callable[[Path], None]
) -> None:
    change(store.root / "demo" / "index.json")
    for reference, version in (("demo", "v1.1"), ("demo:stable", "v1.0"), ("demo:v1.0", "v1.0")):
        assert version_for(store, reference) == version


def test_an_index_of_before_the_last_event_is_not_believed(store: HandmadeStore) -> None:
    store.event("demo", "yank", "v1.1")
    assert version_for(store, "demo:stable") == "v1.0"
    with pytest.raises(importer.Refused, match=r"demo:v1\.1 is withdrawn"):
        importer.get(settings(store), "demo:v1.1")
    with pytest.raises(importer.NotPublished):
        importer.get(settings(store), "demo")  # latest named nothing before


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"event": "promote"', "not JSON"),
        (sealed({"event": "promote", "version": "v1.0"}).replace(b"v1.0", b"v1.1"), "checksum is wrong"),
        (sealed({"event": "deprecate", "version": "v1.0"}), "does not know"),
        (None, "missing"),
    ],
)
def test_without_an_index_a_damaged_event_stops_this_image_only(
    store: HandmadeStore, content: bytes | None, why: str
) -> None:
    (store.root / "demo" / "index.json").unlink()
    event = store.events("demo")[0]
    if content is None:
        event.unlink()
    else:
        event.write_bytes(content)
    with pytest.raises(importer.Refused, match=why) as refused:
        importer.get(settings(store), "demo:v1.0")
    assert str(event) in str(refused.value)
    assert "sqshpipe store rebuild" in str(refused.value)
    assert version_for(store, "pytorch:24.01-py3") == "24.01-py3"


@pytest.mark.parametrize("mode", ["checksum", "json", "another release", "pipe", "symlink"])
def test_a_damaged_record_is_refused(store: HandmadeStore, mode: str) -> None:
    (store.root / "demo" / "index.json").unlink()
    path = store.root / "demo" / "v1.0.json"
    table = json.loads(path.read_text())
    path.write_bytes(sealed(table))
    assert version_for(store, "demo:v1.0") == "v1.0"
    raw = path.read_bytes()
    if mode == "checksum":
        path.write_bytes(raw.replace(table["sha256"].encode(), b"0" * 64))
    elif mode == "json":
        path.write_bytes(raw[:40])
    else:
        path.unlink()
    if mode == "another release":
        path.write_bytes((store.root / "demo" / "v1.1.json").read_bytes())
    elif mode == "pipe":
        os.mkfifo(path)
    elif mode == "symlink":
        path.symlink_to("v1.1.json")
    with pytest.raises(importer.Refused, match=r"v1\.0\.json"):
        importer.get(settings(store), "demo:v1.0")
    assert version_for(store, "demo:v1.1") == "v1.1"


def test_a_damaged_file_of_one_platform_is_refused_there_only(
    store: HandmadeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = store.release("demo", "v1.0", platform="linux/arm64")
    store.event("demo", "damaged", "v1.0", platform="linux/amd64")
    table = store.index("demo")
    release = table["releases"]["v1.0"]
    release["damaged"] = {"linux/amd64": release["platforms"].pop("linux/amd64")}
    store.write_index("demo", table)
    for _ in range(2):
        with pytest.raises(importer.Refused, match=r"demo:v1\.0 is damaged"):
            importer.get(settings(store), "demo:v1.0")
        (store.root / "demo" / "index.json").unlink(missing_ok=True)
    on_machine(monkeypatch, "aarch64")
    assert importer.get(settings(store), "demo:v1.0") == str(arm)


@pytest.mark.parametrize("seed", range(40))
def test_events_are_folded_as_the_store_folds_them(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    folder = tmp_path / "demo"
    (folder / ".meta" / "events").mkdir(parents=True)
    state = ImageState(image="demo")
    versions = ["v1", "v2", "v3", "v4"]
    for number in range(1, chance.randint(2, 80)):
        kind = chance.choice([*sorted(KINDS), "promote", "promote", "yank"])
        change = Change(
            kind=kind,
            version=chance.choice(versions),
            channel=chance.choice(["latest", "stable"]) if kind in ("promote", "rollback") else "",
            platform=chance.choice(["linux/amd64", "linux/arm64"]) if kind in ("damaged", "repaired") else "",
        )
        state.apply(Event(number=number, change=change, by="x", at=f"{number:04}"))
        table = {"schema": 1, "event": kind, "version": change.version, "channel": change.channel}
        table["platform"] = change.platform
        (folder / ".meta" / "events" / f"{number:08d}.json").write_bytes(sealed(table))
    for name in [f"{version}{platform}" for version in versions for platform in ("", ".linux-arm64")]:
        (folder / f"{name}.json").write_bytes(b"{}")  # which records there are changes no answer
    history = importer.History(str(folder), "demo")
    reported = {channel: names for channel, names in history.channels.items() if names}
    assert reported == {channel: names for channel, names in state.channels.items() if names}
    for version in versions:
        standing = state.releases.get(version)
        expected = standing.state("linux/amd64") if standing else "published"
        assert history.state(version) == expected, version
    assert KINDS == importer.KINDS


ASKED = ("demo", "demo:latest", "demo:stable", "demo:v1.0", "demo:v1.1", f"demo@{SOURCE}")


def answers(store: HandmadeStore) -> list[str | None]:
    found: list[str | None] = []
    for reference in ASKED:
        with contextlib.suppress(importer.Refused):
            found.append(importer.get(settings(store), reference))
            continue
        found.append(None)
    return found


def mutated(raw: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(raw))
    kind = chance.choice(["flip", "cut", "digit", "double", "insert", "zero"])
    if kind == "flip":
        return raw[:place] + bytes([raw[place] ^ 1 << chance.randrange(8)]) + raw[place + 1 :]
    if kind == "cut":
        return raw[:place]
    if kind == "digit":
        return raw[:place] + chance.choice(b'0123456789abcdef"{}[],').to_bytes(1, "big") + raw[place + 1 :]
    if kind == "double":
        return raw[:place] + raw[place // 2 :]
    return raw[:place] + (b"\0" * 40 if kind == "zero" else b"  ") + raw[place:]


@pytest.mark.parametrize("seed", range(60))
def test_no_mutation_of_any_file_gives_another_version(store: HandmadeStore, seed: int) -> None:
    """Of the index, an older index, a record or an event; without an index only a refusal is as good."""
    chance = random.Random(seed)
    older = (store.root / "demo" / "index.json").read_bytes()
    store.release("demo", "v0.5", state="yanked", created="2026-01-01T00:00:00Z")
    store.channel("demo", "stable", "v1.1")
    store.channel("demo", "stable", "v1.0")
    records = list((store.root / "demo").glob("v*.json"))
    for record in records:
        record.write_bytes(sealed(json.loads(record.read_text())))
    index = store.root / "demo" / "index.json"
    good, right = index.read_bytes(), answers(store)
    assert None not in right
    for _ in range(10):
        index.write_bytes(mutated(good, chance))
        assert answers(store) == right
    index.write_bytes(older)
    assert answers(store) == right
    index.unlink()
    events = store.events("demo")
    for path in (*records, *events):
        before = path.read_bytes()
        for _ in range(3):
            path.write_bytes(mutated(before, chance))
            assert all(
                found in (None, good_one) for found, good_one in zip(answers(store), right, strict=True)
            )
        path.unlink()
        if path in events[:-1]:
            assert answers(store)[:2] == [None, None]
        path.write_bytes(before)
    assert answers(store) == right


HOSTILE = "de\x1b[31mmo\r\n::error::x\u202e\udc80"


@pytest.mark.parametrize("words", [["get", HOSTILE], ["get", f"docker://{HOSTILE}"], [HOSTILE]])
def test_what_is_echoed_cannot_give_orders(store: HandmadeStore, tmp_path: Path, words: list[str]) -> None:
    program = install(ImporterSettings(store=store.root, state=tmp_path / "state"), tmp_path / "prefix")
    done = subprocess.run([program, *words], env={}, capture_output=True)
    assert done.returncode in (1, 2)
    text = done.stderr.decode("ascii")
    assert text.startswith("pyxis-importer: ")
    assert text.endswith("\n")
    assert text[:-1].isprintable()


def test_a_newer_index_is_refused(store: HandmadeStore) -> None:
    (store.root / "demo" / "index.json").write_bytes(sealed({"schema": 2, "releases": {}}))
    with pytest.raises(importer.Refused, match="newer than this importer"):
        importer.get(settings(store), "demo:v1.0")


def test_an_entry_cannot_lead_out_of_the_store(store: HandmadeStore) -> None:
    table = store.index("demo")
    table["releases"]["v1.0"]["platforms"]["linux/amd64"]["file"] = "../../etc/passwd"
    store.write_index("demo", table)
    with pytest.raises(importer.Refused, match="damaged"):
        importer.get(settings(store), "demo:v1.0")


def test_a_release_that_the_index_does_not_know_yet_is_found(store: HandmadeStore) -> None:
    path = store.release("demo", "v1.2", index=False)
    assert importer.get(settings(store), "demo:v1.2") == str(path)


def test_leases_come_with_get_and_go_with_release(
    store: HandmadeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_job(monkeypatch)
    slurm_says(monkeypatch, CLUSTER_NAME='gpu "west"')
    path = importer.get(settings(store), "demo")
    importer.get(settings(store), "demo")
    (lease,) = (store.root / "leases").iterdir()
    reported = json.loads(lease.read_text())
    assert lease.stat().st_mode & 0o777 == 0o644
    assert path.endswith(f"{reported['sha256']}.sqsh")
    assert (reported["image"], reported["version"], reported["job"], reported["step"]) == (
        "demo",
        "v1.1",
        "17",
        "0",
    )
    assert (reported["host"], reported["uid"], reported["cluster"]) == ("node7", os.getuid(), "gpuwest")
    assert reported["created"] < reported["expires"]
    in_job(monkeypatch, step="1")
    importer.get(settings(store), "demo")
    assert len(list((store.root / "leases").iterdir())) == 2
    for _ in range(2):
        importer.release(settings(store))
        assert list((store.root / "leases").iterdir()) == [lease]


@pytest.mark.parametrize(
    ("address", "pattern", "node"),
    [
        ("n2", "node", "n2"),
        ("top.leaf1.n2", "switch.switch.node", "n2"),
        ("leaf1.n2.example.com", "switch.node", "n2.example.com"),
        ("", "", "node7"),
        ("../x", "node", "..x"),
    ],
)
def test_two_nodes_of_one_host_have_a_lease_each(
    store: HandmadeStore, monkeypatch: pytest.MonkeyPatch, address: str, pattern: str, node: str
) -> None:
    in_job(monkeypatch)
    slurm_says(monkeypatch, TOPOLOGY_ADDR="n1", TOPOLOGY_ADDR_PATTERN="node")
    importer.get(settings(store), "demo")
    (other,) = (store.root / "leases").iterdir()
    slurm_says(monkeypatch, TOPOLOGY_ADDR=address, TOPOLOGY_ADDR_PATTERN=pattern)
    importer.get(settings(store), "demo")
    (own,) = set((store.root / "leases").iterdir()) - {other}
    assert json.loads(own.read_text())["host"] == node
    assert own.name == f"job-17.0-{node}-{os.getuid()}.json"
    importer.release(settings(store))
    assert list((store.root / "leases").iterdir()) == [other], "the other node's step still runs"


def test_the_lease_lasts_as_long_as_the_job(store: HandmadeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    in_job(monkeypatch)
    slurm_says(monkeypatch, JOB_END_TIME="1800000000")
    importer.get(settings(store), "demo")
    (lease,) = (store.root / "leases").iterdir()
    assert json.loads(lease.read_text())["expires"] == "2027-01-15T09:00:00Z"


@pytest.mark.parametrize("end", ["²", "9" * 20, "9" * 400, "", "UNLIMITED", "-1"])
def test_an_end_that_is_no_time_does_not_stop_the_job(
    store: HandmadeStore, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    in_job(monkeypatch)
    slurm_says(monkeypatch, JOB_END_TIME=end)
    assert importer.get(settings(store), "demo")
    (lease,) = (store.root / "leases").iterdir()
    reported = json.loads(lease.read_text())
    assert reported["created"] < reported["expires"] < "2200"


def test_a_lease_that_cannot_be_left_does_not_stop_the_job(
    store: HandmadeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_job(monkeypatch)
    assert importer.get(settings(store, leases="/proc/nowhere"), "demo")
    importer.release(settings(store, leases="/proc/nowhere"))
    monkeypatch.delenv("SLURM_JOB_ID")
    assert importer.get(settings(store), "demo")
    assert not list((store.root / "leases").iterdir())


def test_the_whole_file_is_checked_once_when_asked(store: HandmadeStore, tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "verified").mkdir(parents=True)
    checking = settings(store, verify=True, state=str(state))
    path = Path(importer.get(checking, "demo:v1.0"))
    assert len(list((state / "verified").iterdir())) == 1
    good = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    os.utime(path, ns=(1, 1))
    with pytest.raises(importer.Refused, match="changed its bytes"):
        importer.get(checking, "demo:v1.0")


def test_a_prewarmed_copy_is_preferred_when_it_is_whole_and_trusted(
    store: HandmadeStore, tmp_path: Path
) -> None:
    local, state = tmp_path / "nvme", tmp_path / "state"
    local.mkdir()
    (state / "verified").mkdir(parents=True)
    warm = settings(store, local=str(local), state=str(state), trusted_uids=[os.getuid()])
    original = Path(importer.get(warm, "demo:v1.0"))
    assert original.is_relative_to(store.root)
    copy = local / original.name
    copy.write_bytes(original.read_bytes())
    copy.chmod(0o444)
    assert importer.get(warm, "demo:v1.0") == str(copy)
    copy.chmod(0o646)
    assert importer.get(warm, "demo:v1.0") == str(original), "others can write it"
    good = original.read_bytes()
    copy.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    os.utime(copy, ns=(2, 2))
    copy.chmod(0o444)
    assert importer.get(warm, "demo:v1.0") == str(original), "other bytes"
    copy.unlink()
    copy.symlink_to(original)
    assert importer.get(warm, "demo:v1.0") == str(original), "a link is nobody's copy"


def test_the_fallback_imports_once_and_keeps_nothing_partial(store: HandmadeStore, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    fake = tmp_path / "enroot"
    fake.write_text(
        f'#!/bin/sh\necho "$@" >> {calls}\n[ -z "$FAIL" ] || {{ echo half > "$3"; exit 1; }}\n'
        'printf hsqs > "$3"; head -c 200 /dev/zero >> "$3"\n'
    )
    fake.chmod(0o755)
    state = tmp_path / "state"
    policy = settings(store, missing="import", enroot=str(fake), state=str(state))
    os.environ["FAIL"] = "1"
    try:
        with pytest.raises(importer.Refused, match=r"enroot import failed \(1\)"):
            importer.get(policy, "docker://ubuntu:24.04")
    finally:
        del os.environ["FAIL"]
    assert not list(state.rglob("*.sqsh"))
    paths = {importer.get(policy, "docker://ubuntu:24.04") for _ in range(3)}
    assert len(paths) == 1
    assert len(calls.read_text().splitlines()) == 2
    assert importer.get(policy, "docker://demo:v1.0").startswith(str(store.root))


@pytest.mark.parametrize("text", ['{"store": 7}', '{"stor": "x"}', '{"verify": 1}'])
def test_settings_are_checked(text: str) -> None:
    with pytest.raises(importer.Refused, match="bad value"):
        importer.Settings(json.loads(text))


def test_the_installed_program_stands_alone(store: HandmadeStore, tmp_path: Path) -> None:
    prefix = tmp_path / "prefix"
    program = install(ImporterSettings(store=store.root, state=tmp_path / "state"), prefix)
    install(ImporterSettings(store=store.root, state=tmp_path / "state"), prefix)
    assert sorted(each.name for each in (prefix / "bin").iterdir()) == [
        "pyxis-importer",
        "pyxis-importer.json",
    ]
    assert program.stat().st_mode & 0o777 == 0o755
    assert program.read_bytes() == Path(importer.__file__).read_bytes(), "what is installed can be read"
    linked = tmp_path / "linked"
    linked.symlink_to(program)
    assert (tmp_path / "state" / "verified").stat().st_mode & 0o7777 == 0o1777
    spoiled = tmp_path / "json.py"
    spoiled.write_text("raise SystemExit('a module of the user took part')")
    assert subprocess.run([linked, "get", "docker://demo"], env={}, capture_output=True).returncode == 0
    hostile = {"PATH": "/nowhere", "PYTHONPATH": str(tmp_path), "PYTHONHOME": "/nowhere"}
    done = subprocess.run([program, "get", "docker://demo:v1.0"], env=hostile, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert hashlib.sha256(Path(line).read_bytes()).hexdigest() in line
    for arguments, code in (
        (["release"], 0),
        (["release"], 0),
        (["get", "docker://x"], 1),
        (["put"], 2),
        ([], 2),
    ):
        done = subprocess.run([program, *arguments], env={}, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert "Traceback" not in done.stderr
    assert (
        "not published"
        in subprocess.run([program, "get", "docker://x"], capture_output=True, text=True).stderr
    )


def test_the_importer_stays_out_of_the_store(store: HandmadeStore) -> None:
    with pytest.raises(ConfigError, match="into the store"):
        install(ImporterSettings(store=store.root, state=Path("/nowhere")), store.root / "tools")
    with pytest.raises(ConfigError, match="absolute path"):
        ImporterSettings(store=Path("/fsx/two\nlines"))


def test_it_is_one_file_of_the_standard_library_for_old_pythons() -> None:
    source = Path(importer.__file__).read_text()
    tree = ast.parse(source, feature_version=(3, 8))
    assert source.startswith("#!/usr/bin/python3 -IS\n")
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [each.name for each in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= set(sys.stdlib_module_names)
    top = {each.name for node in tree.body if isinstance(node, ast.Import) for each in node.names}
    assert top == {"binascii", "errno", "json", "os", "stat", "sys", "time"}, "every get pays for these"


def test_the_handmade_bytes_pass_for_squashfs() -> None:
    data = squashfs_like("x")
    assert (data[:4], data[28:32], int.from_bytes(data[40:48], "little")) == (b"hsqs", b"\4\0\0\0", 4096)
