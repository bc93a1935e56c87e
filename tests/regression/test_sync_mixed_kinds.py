"""`publish` refuses data under the name of an image, and `sync` brought it: `latest` then named data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pipeline.errors import PublishError
from pipeline.store.record import DATA, IMAGE
from pipeline.store.store import Store
from pipeline.store.sync import compare, sync
from tests.support.store.releases import new_store, record_for


def publish(store: Store, version: str, kind: str, image: str = "demo") -> None:
    content = version.encode()
    with store.staging() as staged:
        staged.write_bytes(content)
        record = dataclasses.replace(record_for(content, version, image=image), kind=kind)
        store.publish(record, staged)


@pytest.mark.parametrize(("kind", "other"), [(IMAGE, DATA), (DATA, IMAGE)])
def test_a_name_keeps_its_kind(tmp_path: Path, kind: str, other: str) -> None:
    source, target = new_store(tmp_path / "source"), new_store(tmp_path / "target")
    publish(target, "v1.0", kind)
    publish(source, "v1.1", other)
    publish(source, "v1.2", other, image="another")
    for look in (compare, sync):
        with pytest.raises(PublishError, match="demo is the name of"):
            look(source, target)
    assert target.resolve("demo").version == "v1.0"
    assert target.resolve("another").version == "v1.2"


def test_two_kinds_in_one_source(tmp_path: Path) -> None:
    source, more, target = (new_store(tmp_path / name) for name in ("source", "more", "target"))
    publish(source, "v1.0", IMAGE)
    publish(more, "v1.1", DATA)
    for path in (more.root / "demo").glob("v1.1.*"):  # as a sync of an older sqshpipe has left it
        path.rename(source.root / "demo" / path.name)
    for path in (more.root / "blobs" / "sha256").iterdir():
        path.rename(source.root / "blobs" / "sha256" / path.name)
    with pytest.raises(PublishError, match="demo is the name of an image"):
        sync(source, target)
    assert [line.version for line in target.listed("demo")] == ["v1.0"]
