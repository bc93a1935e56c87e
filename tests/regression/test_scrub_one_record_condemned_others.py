"""A record that gives another size than its bytes have says nothing of other releases with the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.store import restore, sealed
from pipeline.store.scrub import scrub
from tests.support.store.releases import new_store, publish


@pytest.mark.parametrize("wrong", ["alpha", "beta"])
def test_only_the_release_whose_record_is_wrong_is_marked(tmp_path: Path, wrong: str) -> None:
    store = new_store(tmp_path / "containers")
    for image in ("alpha", "beta"):
        publish(store, "v1.0", b"the same", image=image)
    path = store.layout.record(wrong, "v1.0", "linux/amd64")
    table = json.loads(path.read_bytes())
    del table["crc32"]
    path.unlink()
    path.write_bytes(sealed.seal(json.dumps(table | {"size": 5})))
    found = scrub(store.layout).damaged
    assert [one.releases for one in found] == [(f"{wrong}:v1.0",)]
    sound = {"alpha", "beta"} - {wrong}
    assert {image for image in ("alpha", "beta") if store.state(image).releases["v1.0"].resolvable()} == sound


def test_the_tombstone_of_one_platform_is_not_reported_again(tmp_path: Path) -> None:
    store = new_store(tmp_path / "containers")
    publish(store, "v1.0")
    arm = publish(store, "v1.0", b"arm", platform="linux/arm64")
    arm.path.unlink()
    record = store.layout.record("demo", "v1.0", "linux/arm64")
    record.unlink()
    record.write_bytes(b"damaged")
    restore.bury(store.layout, "demo:v1.0", "linux/arm64")
    report = scrub(store.layout)
    assert (report.damaged, report.broken, report.checked) == ([], [], 1)
    assert store.resolve("demo:v1.0").state == "published"
