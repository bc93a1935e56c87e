"""An index said of which kind the releases of an image are, and `publish` believed it: it refused an image
where all were images, and let a channel of data name one.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pipeline.errors import PublishError
from pipeline.store import reading
from pipeline.store.index import write_index
from pipeline.store.record import DATA, IMAGE
from pipeline.store.store import Store
from tests.support.store.releases import new_store, record_for


def publish(store: Store, version: str, kind: str) -> None:
    content = version.encode()
    with store.staging() as staged:
        staged.write_bytes(content)
        store.publish(dataclasses.replace(record_for(content, version), kind=kind), staged)


def reseal_with(store: Store, kind: str) -> None:
    """Write an index that is sound and current, and says of every release that it is of that kind."""
    state = store.state("demo")
    for one in state.releases.values():
        one.platforms = {name: dataclasses.replace(held, kind=kind) for name, held in one.platforms.items()}
    store.layout.index("demo").write_bytes(write_index(state))
    assert {held.kind for _, _, _, held in store.state("demo").stems()} == {kind}


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize(("kind", "other"), [(IMAGE, DATA), (DATA, IMAGE)])
def test_the_kind_is_that_of_the_records(tmp_path: Path, kind: str, other: str, damaged: bool) -> None:
    store = new_store(tmp_path / "containers")
    for version in ("v1.0", "v1.1", "v1.2"):
        publish(store, version, kind)
    if damaged:  # the first in the order of names
        store.layout.record("demo", "v0.9", "linux/amd64").write_text("{")
    reseal_with(store, other)
    with pytest.raises(PublishError, match="demo is the name of"):
        publish(store, "v1.3", other)
    publish(store, "v1.3", kind)
    assert store.resolve("demo").version == "v1.3"


def test_the_kind_is_known_where_a_listing_is_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = new_store(tmp_path / "containers")
    publish(store, "v1.0", DATA)
    monkeypatch.setattr(reading, "records_in", lambda *_: set())
    with pytest.raises(PublishError, match="demo is the name of data"):
        publish(store, "v1.1", IMAGE)
