"""Ranges beside releases: written with a release, believed only as its record names them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from pipeline.store.layout import LAYERS, RANGES
from pipeline.store.record import Release
from pipeline.store.sharing import Holders, is_vouched, layers_of, ranges_of
from pipeline.store.store import Store
from pipeline.store.sync import sync
from tests.support.store.releases import new_store, publish
from tests.support.store.versions import layer, release


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "store")


def made(store: Store, tmp_path: Path, version: str, *names: str, image: str = "demo") -> Release:
    return release(store, version, *(layer(name, 0.2) for name in names), folder=tmp_path, image=image)


def test_a_release_names_its_packs_and_ranges(store: Store, tmp_path: Path) -> None:
    one = made(store, tmp_path, "v1.0", "a", "b")
    record = json.loads((store.root / "demo" / "v1.0.json").read_text())
    assert record["packs"] == list(one.packs)
    assert len(one.packs) == 3
    beside = store.layout.attachments("demo", "v1.0", "linux/amd64")
    assert record["attachments"] == {
        name: hashlib.sha256((beside / name).read_bytes()).hexdigest() for name in (RANGES, LAYERS)
    }
    ranges = ranges_of(store.layout, one)
    assert ranges is not None
    assert (ranges.size, ranges.keys) == (one.size, one.packs)


def test_a_file_of_another_converter_has_none(store: Store) -> None:
    plain = publish(store, "v1.0")
    assert (plain.packs, plain.attachments) == ((), {})
    assert ranges_of(store.layout, plain) is None
    assert Holders(store.layout).of(plain) == []


def test_a_release_stays_the_store_s_own_when_its_copy_comes_back(store: Store, tmp_path: Path) -> None:
    own, other = made(store, tmp_path, "v1.0", "a"), new_store(tmp_path / "other")
    sync(store, other)
    assert not is_vouched(other.layout, own)
    sync(other, store)
    assert is_vouched(store.layout, own)
    assert layers_of(store.layout, own) is not None


def test_holders_are_those_with_common_packs_most_first(store: Store, tmp_path: Path) -> None:
    made(store, tmp_path, "v1.0", "x", image="other")
    made(store, tmp_path, "v1.0", "a", image="third")
    made(store, tmp_path, "v1.0", "a", "b", "old")
    wanted = made(store, tmp_path, "v1.1", "a", "b", "new")
    found = [f"{each.record.image}:{each.record.version}" for each in Holders(store.layout).of(wanted)]
    assert found == ["demo:v1.0", "third:v1.0", "other:v1.0"], "all have bin/sh in common"


def test_what_cannot_be_believed_is_left_out(store: Store, tmp_path: Path) -> None:
    old = made(store, tmp_path, "v1.0", "a", "b")
    wanted = made(store, tmp_path, "v1.1", "a", "c")
    beside = store.layout.attachments("demo", "v1.0", "linux/amd64") / RANGES
    right = beside.read_bytes()
    for wrong in (b"", right[:-9] + b"1" + right[-8:], b"{}", b"[" * 100_000, b"\0" * (5 << 20)):
        beside.chmod(0o644)
        beside.write_bytes(wrong)
        assert ranges_of(store.layout, old) is None
        assert Holders(store.layout).of(wanted) == []
    beside.unlink()
    beside.symlink_to("/etc/passwd")
    assert ranges_of(store.layout, old) is None
    beside.unlink()
    beside.write_bytes(right)
    assert len(Holders(store.layout).of(wanted)) == 1
    blob = store.layout.blob(old.sha256)
    blob.chmod(0o644)
    blob.write_bytes(b"short")
    assert Holders(store.layout).of(wanted) == []


def test_a_record_with_other_things_in_these_keys_is_damaged(store: Store, tmp_path: Path) -> None:
    from pipeline.store import sealed
    from pipeline.store.record import parse_record
    from pipeline.store.sealed import UnreadableError

    made(store, tmp_path, "v1.0", "a")
    path = store.root / "demo" / "v1.0.json"
    for key, value in (
        ("packs", ["../x"]),
        ("packs", [5]),
        ("packs", "a" * 64),
        ("attachments", {RANGES: 5}),
        ("attachments", [RANGES]),
    ):
        data = json.loads(path.read_text()) | {key: value}
        del data["crc32"]
        with pytest.raises(UnreadableError):
            parse_record(sealed.seal(json.dumps(data)), path)


def test_records_of_before_have_none(store: Store) -> None:
    from pipeline.store import sealed
    from pipeline.store.record import parse_record

    publish(store, "v1.0")
    path = store.root / "demo" / "v1.0.json"
    data = json.loads(path.read_text())
    for key in ("packs", "attachments", "crc32"):
        del data[key]
    assert parse_record(sealed.seal(json.dumps(data)), path).packs == ()


def test_only_what_the_record_names_is_attached(store: Store, tmp_path: Path) -> None:
    one = made(store, tmp_path, "v1.0", "a")
    beside = store.layout.attachments("demo", "v1.0", "linux/amd64") / RANGES
    beside.unlink()
    assert not store.attach(one, RANGES, b"other")
    assert not beside.exists()


def test_a_copy_of_the_release_has_them_too(store: Store, tmp_path: Path) -> None:
    made(store, tmp_path, "v1.0", "a")
    other = new_store(tmp_path / "other")
    sync(store, other)
    assert ranges_of(other.layout, other.resolve("demo")) == ranges_of(store.layout, store.resolve("demo"))
