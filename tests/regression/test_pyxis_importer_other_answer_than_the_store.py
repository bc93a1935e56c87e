"""The importer and the store give one answer about a store whose files are odd: the same bytes, or none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import SqshpipeError
from pipeline.node import pyxis_importer as importer
from pipeline.store import sealed
from pipeline.store.events import Change, Event, as_bytes
from pipeline.store.store import Store
from tests.support.store.handmade_store import squashfs_like
from tests.support.store.releases import new_store, publish, record_for

ODD_RECORDS = (
    '"image": "\u0430lpha"',
    '"size": 4096.0',
    '"size": true',
    '"size": 99999999999999999999999',
    '"version": "v1.\u0662"',
    '"created": 5',
    '"created": "\\ud800"',
    '"source": []',
    '"source": {"digest": 5}',
    '"checks": [1]',
    '"deep": ' + "[" * 40 + "]" * 40,
    '"x": NaN',
    '"schema": 1.0',
    '"schema": -1',
)
ODD_EVENTS = (
    '"image": "beta"',
    '"number": 7',
    '"version": "v9.\u0669"',
    '"channel": "../x"',
    '"channel": ""',
    '"event": "zap"',
    '"at": 5',
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = new_store(tmp_path / "containers")
    for version in ("v1.0", "v1.1"):
        publish(made, version, squashfs_like(version), image="alpha")
    made.promote("alpha:v1.0", "stable")
    return made


def both(store: Store, name: str) -> tuple[str, str]:
    """What store and importer resolve `name` to; empty where they refuse it."""
    try:
        ours = str(store.resolve(name).path)
    except SqshpipeError:
        ours = ""
    try:
        theirs = importer.get(importer.Settings({"store": str(store.root)}), f"docker://{name}")
    except importer.Refused:
        theirs = ""
    return ours, theirs


def replaced(path: Path, odd: str, *, twice: bool) -> None:
    table = json.loads(path.read_bytes())
    table.pop("crc32", None)
    if not twice:
        table.pop(json.loads("{" + odd.replace("NaN", "0") + "}").popitem()[0], None)
    path.unlink()
    path.write_bytes(sealed.seal(json.dumps(table)[:-1] + f", {odd}}}"))


def without_index(store: Store) -> None:
    store.layout.index("alpha").unlink()
    store.layout.head("alpha").unlink()


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("odd", ODD_RECORDS)
def test_a_record_is_damaged_for_both(store: Store, odd: str, twice: bool) -> None:
    without_index(store)
    replaced(store.layout.record("alpha", "v1.0", "linux/amd64"), odd, twice=twice)
    assert both(store, "alpha:v1.0") == ("", "")
    assert both(store, "alpha:v1.1")[0] == both(store, "alpha:v1.1")[1] != ""


@pytest.mark.parametrize("odd", ODD_EVENTS)
def test_an_event_is_damaged_for_both(store: Store, odd: str) -> None:
    without_index(store)
    replaced(store.layout.event("alpha", 2), odd, twice=False)
    assert both(store, "alpha:stable") == ("", "")


def test_utf_16_is_no_record_for_both(store: Store) -> None:
    without_index(store)
    path = store.layout.record("alpha", "v1.0", "linux/amd64")
    table = json.loads(path.read_bytes())
    del table["crc32"]
    path.unlink()
    path.write_bytes(json.dumps(table).encode("utf-16"))
    assert both(store, "alpha:v1.0") == ("", "")


def test_an_index_of_another_time_is_not_believed(store: Store) -> None:
    """The events were brought back to an earlier state, and as many others happened since."""
    last = Store(store.root).state("alpha").events
    change = Change(kind="promote", version="v1.1", channel="stable")
    path = store.layout.event("alpha", last)
    path.unlink()
    path.write_bytes(as_bytes("alpha", Event(number=last, change=change, by="x", at="2026-01-01")))
    ours, theirs = both(store, "alpha:stable")
    assert ours == theirs == str(store.resolve("alpha:v1.1").path)


def test_files_of_other_names_are_no_events(store: Store) -> None:
    without_index(store)
    for name in ("99.json", "\u0661\u0662\u0663\u0664\u0665\u0666\u0667\u0668.json", "0000000000099.json"):
        (store.layout.events("alpha") / name).write_bytes(b"x")
    ours, theirs = both(store, "alpha:stable")
    assert ours == theirs != ""


def test_a_version_that_is_damaged_for_another_platform_is_not_gone_back_to(store: Store) -> None:
    publish(store, "v1.0", squashfs_like("arm"), image="alpha", platform="linux/arm64")
    store.promote("alpha:v1.1", "stable")
    last = store.state("alpha").events
    for number, change in enumerate(
        (
            Change(kind="damaged", version="v1.0", platform="linux/arm64"),
            Change(kind="yank", version="v1.1"),
        ),
        last + 1,
    ):
        event = Event(number=number, change=change, by="x", at=f"2026-01-0{number}")
        store.layout.event("alpha", number).write_bytes(as_bytes("alpha", event))
    assert both(store, "alpha:stable") == ("", "")


def test_a_digest_of_another_platform_is_not_this_node_s(store: Store) -> None:
    arm = squashfs_like("arm")
    release = publish(store, "v1.1", arm, image="alpha", platform="linux/arm64")
    for _ in range(2):
        reference = f"docker://alpha@sha256:{release.sha256}"
        with pytest.raises(importer.Refused):
            importer.get(importer.Settings({"store": str(store.root)}), reference)
        store.layout.index("alpha").unlink(missing_ok=True)


def test_a_record_that_the_index_does_not_have_yet_is_found_by_its_digest(store: Store) -> None:
    """Two releases were made from one image; the caches were not written after the second one."""
    old = store.layout.index("alpha").read_bytes()
    record = record_for(squashfs_like("v1.2"), "v1.2", image="alpha")
    with store.staging() as staged:
        staged.write_bytes(squashfs_like("v1.2"))
        newer = store.publish(record, staged, channels=())
    store.layout.index("alpha").write_bytes(old)
    for digest in (newer.sha256, "a" * 64):
        reference = f"docker://alpha@sha256:{digest}"
        assert importer.get(importer.Settings({"store": str(store.root)}), reference) == str(newer.path)
