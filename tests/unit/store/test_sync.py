"""Copies to another mounted store: what travels, what is verified, what is resumed."""

from __future__ import annotations

import io
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

import pytest

from pipeline.errors import PublishError, VerificationError
from pipeline.store import prune
from pipeline.store import sync as syncing
from pipeline.store.record import Record
from pipeline.store.retention import Policy
from pipeline.store.scrub import scrub
from pipeline.store.store import Store
from pipeline.store.sync import sync
from pipeline.store.sync_source import MountedSource
from tests.support.store.releases import folder, new_store, publish


@pytest.fixture
def source(tmp_path: Path) -> Store:
    store = new_store(tmp_path / "source")
    for version in ("v1.0", "v1.1", "v1.2"):
        publish(store, version)
    publish(store, "v1.0", b"other", image="other")
    store.mark("demo:v1.1", "yank")
    attached = store.layout.attachments("demo", "v1.0", "linux/amd64")
    attached.mkdir()
    (attached / "sbom.json").write_text("{}")
    return store


@pytest.fixture
def target(tmp_path: Path) -> Store:
    return new_store(tmp_path / "target")


def test_what_resolves_is_copied_once_with_all_that_belongs_to_it(source: Store, target: Store) -> None:
    report = sync(source, target)
    assert report.copied == ["demo:v1.0", "demo:v1.2", "other:v1.0"]
    assert [line.version for line in target.listed("demo")] == ["v1.2", "v1.0"]
    assert target.resolve("demo").version == "v1.2"
    assert target.resolve("demo:v1.0").path.read_bytes() == b"v1.0"
    assert (target.layout.attachments("demo", "v1.0", "linux/amd64") / "sbom.json").read_text() == "{}"
    again = sync(source, target)
    assert (again.copied, again.present, again.bytes_copied) == ([], 3, 0)


def test_only_what_is_named(source: Store, target: Store) -> None:
    assert sync(source, target, names=["demo:v1.0", "other"]).copied == ["demo:v1.0", "other:v1.0"]


def test_channels_travel_when_asked_for(source: Store, target: Store) -> None:
    source.promote("demo:v1.0", "stable")
    sync(source, target, mirror_channels=["stable"])
    assert target.resolve("demo:stable").version == "v1.0"


def test_a_version_with_other_content_is_refused(source: Store, target: Store) -> None:
    publish(target, "v1.0", b"other content")
    with pytest.raises(PublishError, match="other content"):
        sync(source, target)
    assert target.resolve("demo:v1.0").path.read_bytes() == b"other content"


def test_damaged_bytes_do_not_become_a_release(source: Store, target: Store) -> None:
    blob = source.resolve("demo:v1.0").path
    blob.chmod(0o644)
    blob.write_bytes(b"rot!")
    with pytest.raises(VerificationError, match="arrived with sha256"):
        sync(source, target)
    assert target.release("demo", "v1.0") is None
    whole = {target.resolve(name).path.name for name in ("demo:v1.2", "other:v1.0")}
    assert set(folder(target.layout.blobs)) == whole, "the others are copied"


def test_a_copy_cut_inside_a_file_is_resumed(
    source: Store, target: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(source, "v2.0", bytes(range(256)) * 40, image="big")
    opened: list[int] = []
    real = MountedSource.open_from

    def cut(self: MountedSource, record: Record, offset: int) -> BinaryIO:
        if record.image != "big":
            return real(self, record, offset)
        opened.append(offset)
        with real(self, record, offset) as file:
            if len(opened) > 1:
                return io.BytesIO(file.read())
            return Cut(file.read(5000))

    class Cut(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if piece := super().read(size):
                return piece
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(MountedSource, "open_from", cut)
    monkeypatch.setattr(syncing, "is_orphan", lambda _: True)  # the process that was cut lives on here
    with pytest.raises(PublishError, match="Input/output error"):
        sync(source, target)
    report = sync(source, target)
    assert opened == [0, 5000]
    assert sorted(report.copied) == ["big:v2.0", "demo:v1.0", "demo:v1.2", "other:v1.0"]
    assert target.resolve("big:v2.0").path.read_bytes() == bytes(range(256)) * 40


def test_there_must_be_a_store(tmp_path: Path, target: Store) -> None:
    nothing = Store(tmp_path / "nothing")
    for source, other in ((nothing, target), (target, nothing)):
        with pytest.raises(PublishError, match="there is no store at"):
            sync(source, other)
    assert not nothing.root.exists()


def test_what_was_pruned_at_the_target_stays_so(source: Store, target: Store) -> None:
    """Else a nightly copy would bring back what the nightly prune takes away."""
    sync(source, target)
    policy = Policy(keep=1, named_grace=timedelta(0), delete_after=timedelta(0))
    for _ in range(2):
        prune.prune(target.layout, policy, prune.no_jobs)
    report = sync(source, target)
    assert (report.copied, report.present, report.pruned) == ([], 2, ["demo:v1.0"])
    with pytest.raises(PublishError, match="pruned"):
        target.resolve("demo:v1.0")
    assert sync(source, target, names=["demo:v1.0"]).copied == ["demo:v1.0"]
    assert target.resolve("demo:v1.0").path.read_bytes() == b"v1.0"


@pytest.mark.parametrize("repaired", [False, True], ids=["damaged", "put right by hand"])
def test_a_copy_repairs_what_a_scrub_found_damaged(source: Store, target: Store, repaired: bool) -> None:
    sync(source, target)
    blob = target.resolve("demo:v1.0").path
    blob.chmod(0o644)
    blob.write_bytes(b"rot!")
    scrub(target.layout)
    if repaired:
        blob.write_bytes(b"v1.0")
    assert sync(source, target).copied == ["demo:v1.0"]
    assert target.resolve("demo:v1.0").path.read_bytes() == b"v1.0"
    assert scrub(target.layout).damaged == []
