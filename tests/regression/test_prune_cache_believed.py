"""A wrong digit in a cache was believed: prune deleted bytes that a channel named, and hid what was named;
scrub marked sound bytes as damaged; resolve gave another version.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from pipeline.store import prune, scrub
from pipeline.store.retention import Policy
from pipeline.store.sealed import UnreadableError
from pipeline.store.store import Store
from tests.support.store import documented_store
from tests.support.store.releases import new_store, publish

NOW = Policy(keep=1, named_grace=timedelta(0), delete_after=timedelta(0))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = new_store(tmp_path / "containers")
    for version in ("v1.0", "v1.1", "v1.2"):
        publish(store, version)
    publish(store, "v1.0", b"other", image="other")
    store.promote("demo:v1.0", "stable")
    return store


def digest(version: str) -> str:
    return hashlib.sha256(version.encode()).hexdigest()


def change(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert re.search(before, text)
    path.write_text(re.sub(before, after, text))


def wrong_digit(store: Store) -> None:
    change(store.layout.index("demo"), digest("v1.0")[:8], "00000000")


def wrong_size(store: Store) -> None:
    change(store.layout.index("demo"), '"size": 4', '"size": 5')


def wrong_state(store: Store) -> None:
    change(store.layout.index("demo"), '"v1.0": {"state": "published"', '"v1.0": {"state": "pruned"')


def wrong_channels(store: Store) -> None:
    change(store.layout.index("demo"), '"stable": "v1.0"', '"stable": "v1.1"')
    change(store.layout.head("demo"), '"stable": "v1.0"', '"stable": "v1.1"')


def wrong_states(store: Store) -> None:
    change(store.layout.head("demo"), '"states": {}', '"states": {"v1.0": "hidden"}')


def from_the_future(store: Store) -> None:
    for path in (store.layout.index("demo"), store.layout.head("demo")):
        path.write_bytes(path.read_bytes().replace(b'"events": 4', b'"events": 9'))


def of_another_image(store: Store) -> None:
    for path, other in (
        (store.layout.index("demo"), store.layout.index("other")),
        (store.layout.head("demo"), store.layout.head("other")),
    ):
        path.write_bytes(other.read_bytes())


CHANGES = [
    wrong_digit,
    wrong_size,
    wrong_state,
    wrong_channels,
    wrong_states,
    from_the_future,
    of_another_image,
]


@pytest.mark.parametrize("damage", CHANGES)
def test_what_a_channel_names_stays_whatever_the_caches_say(
    store: Store, damage: Callable[[Store], None]
) -> None:
    damage(store)
    assert store.resolve("demo:stable").version == "v1.0"
    assert {line.state for line in store.listed("demo")} == {"published"}
    damage_lines = documented_store.read(store.root)["demo"].marks
    assert scrub.scrub(store.layout).damaged == []
    assert documented_store.read(store.root)["demo"].marks == damage_lines
    for _ in range(3):
        prune.prune(store.layout, NOW, prune.no_jobs)
    assert store.resolve("demo:stable").path.read_bytes() == b"v1.0"
    assert documented_store.blobs(store.root).keys() == {digest(one) for one in ("v1.0", "v1.2", "other")}


def test_an_older_intact_cache_is_noticed(store: Store) -> None:
    old = {path: path.read_bytes() for path in (store.layout.index("demo"), store.layout.head("demo"))}
    store.promote("demo:v1.1", "stable")
    new = {path: path.read_bytes() for path in old}
    for path, content in old.items():
        path.write_bytes(content)
    assert store.resolve("demo:stable").version == "v1.1"
    assert store.state("demo").current("stable") == "v1.1"
    store.rebuild()
    assert {path: path.read_bytes() for path in old} == new


def test_a_cache_of_an_older_version_is_not_believed(store: Store) -> None:
    path = store.layout.head("demo")
    path.write_bytes(
        b'{"schema": 1, "image": "demo", "events": 4, "channels": {"stable": "v1.1"}, '
        b'"states": {}, "damaged": []}'
    )
    assert store.resolve("demo:stable").version == "v1.0"


def test_records_and_events_of_an_older_version_are_read(store: Store) -> None:
    """Without a checksum they are valid: stores that are there stay what they are."""
    folder = store.layout.image("demo")
    for path in (*folder.glob("v*.json"), *folder.glob(".meta/events/*.json")):
        text = re.sub(r',\s*"crc32": "[0-9a-f]{8}"', "", path.read_text()).replace('"number": ', '"old": ')
        path.chmod(0o644)
        path.write_text(text)
    assert store.resolve("demo:stable").version == "v1.0"
    assert store.rebuild() == []


def test_bytes_whose_record_is_gone_stay_while_a_link_or_a_cache_names_them(store: Store) -> None:
    publish(store, "v1.9", external=True)  # no event names it
    store.layout.record("demo", "v1.9", "linux/amd64").unlink()
    report = prune.prune(store.layout, NOW, prune.no_jobs, dry_run=True)
    assert store.layout.blob(digest("v1.9")).exists()
    assert "v1.9.sqsh names it" in dict(report.kept)[f"blobs/sha256/{digest('v1.9')}.sqsh"]
    store.layout.link("demo", "v1.9", "linux/amd64").unlink()
    report = prune.prune(store.layout, NOW, prune.no_jobs, dry_run=True)
    assert "SHA256SUMS names it" in dict(report.kept)[f"blobs/sha256/{digest('v1.9')}.sqsh"]
    store.layout.sums("demo").unlink()
    index = store.layout.index("demo")
    index.write_bytes(b"damaged" + index.read_bytes())
    report = prune.prune(store.layout, NOW, prune.no_jobs, dry_run=True)
    assert "index.json names it" in dict(report.kept)[f"blobs/sha256/{digest('v1.9')}.sqsh"]


def test_a_lost_record_whose_version_events_name_stops_the_deletion(store: Store) -> None:
    store.layout.record("demo", "v1.1", "linux/amd64").unlink()
    for cache in (store.layout.index("demo"), store.layout.sums("demo"), store.layout.manifest):
        cache.unlink()
    store.layout.link("demo", "v1.1", "linux/amd64").unlink()
    for _ in range(2):
        report = prune.prune(store.layout, NOW, prune.no_jobs)
    assert "v1.1.json is missing: events name that version" in report.broken[0]
    assert store.layout.blob(digest("v1.1")).exists()


def test_an_event_that_is_gone_stops_the_deletion(store: Store) -> None:
    for _ in range(2):
        prune.prune(store.layout, NOW, prune.no_jobs)
    last = max(store.layout.events("demo").iterdir())
    publish(store, "v1.1", b"more", image="other")
    publish(store, "v1.2", b"most", image="other")
    last.unlink()
    for _ in range(2):
        report = prune.prune(store.layout, NOW, prune.no_jobs)
    assert f"{last} is missing" in report.broken[0]
    assert {one.action for one in report.verdicts if one.image == "other"} == {"keep", "wait"}
    assert store.layout.blob(hashlib.sha256(b"other").hexdigest()).exists()
    assert "is missing" in store.rebuild()[0]
    prune.prune(store.layout, NOW, prune.no_jobs)
    assert not store.layout.blob(hashlib.sha256(b"other").hexdigest()).exists()


def test_an_event_copied_to_another_number_is_noticed(store: Store) -> None:
    events = sorted(store.layout.events("demo").iterdir())
    events[1].chmod(0o644)
    events[1].write_bytes(events[0].read_bytes())
    store.layout.head("demo").unlink()
    store.layout.index("demo").unlink()
    with pytest.raises(UnreadableError, match="it is event 1 of 'demo'"):
        store.resolve("demo:stable")
    assert store.resolve("other").version == "v1.0"
