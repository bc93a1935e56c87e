"""What a sync copies is the store's own: a link, a pipe or a folder in the place of a file was published."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import FormatError, PublishError, VerificationError
from pipeline.report import sbom
from pipeline.store import attachments, signatures
from pipeline.store.layout import SBOM
from pipeline.store.store import Store
from pipeline.store.sync import sync
from tests.support.store.releases import new_store, publish

SECRET = b'{"bomFormat": "CycloneDX", "secret": true}'
LINUX = "linux/amd64"


@pytest.fixture
def source(tmp_path: Path) -> Store:
    store = new_store(tmp_path / "source")
    for version in ("v1.0", "v2.0"):
        release = publish(store, version)
        attachments.add(store.layout, release, SBOM, b'{"bomFormat": "CycloneDX"}')
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / SBOM).write_bytes(SECRET)
    return store


def beside(store: Store) -> Path:
    return store.layout.attachments("demo", "v1.0", LINUX)


def a_link_to_a_file(store: Store) -> None:
    (beside(store) / SBOM).unlink()
    (beside(store) / SBOM).symlink_to(store.root.parent / "elsewhere" / SBOM)


def one_more_link(store: Store) -> None:
    (beside(store) / "notes").symlink_to("/etc/shadow")


def a_link_to_nothing(store: Store) -> None:
    (beside(store) / "notes").symlink_to("nothing")


def a_pipe(store: Store) -> None:
    os.mkfifo(beside(store) / "notes")


def a_folder(store: Store) -> None:
    (beside(store) / "notes").mkdir()


def a_name_with_a_line_break(store: Store) -> None:
    (beside(store) / "notes\n::error::x").write_bytes(b"x")


def a_folder_of_attachments_elsewhere(store: Store) -> None:
    (beside(store) / SBOM).unlink()
    beside(store).rmdir()
    beside(store).symlink_to(store.root.parent / "elsewhere")


def a_meta_folder_elsewhere(store: Store) -> None:
    meta = beside(store).parent
    meta.rename(store.root.parent / "elsewhere" / "meta")
    meta.symlink_to(store.root.parent / "elsewhere" / "meta")


def a_record_that_is_a_link(store: Store) -> None:
    record = store.layout.record("demo", "v1.0", LINUX)
    record.rename(store.root.parent / "elsewhere" / "record")
    record.symlink_to(store.root.parent / "elsewhere" / "record")


def bytes_that_are_a_link(store: Store) -> None:
    blob = store.resolve("demo:v1.0").path
    blob.rename(store.root.parent / "elsewhere" / "blob")
    blob.symlink_to(store.root.parent / "elsewhere" / "blob")


Change = Callable[[Store], None]
OF_ONE_RELEASE = [
    *(a_link_to_a_file, one_more_link, a_link_to_nothing, a_pipe, a_folder, a_name_with_a_line_break),
    *(a_folder_of_attachments_elsewhere, a_record_that_is_a_link, bytes_that_are_a_link),
]


@pytest.mark.parametrize("change", OF_ONE_RELEASE)
def test_a_release_with_something_from_elsewhere_is_refused_and_the_others_are_copied(
    source: Store, tmp_path: Path, change: Change
) -> None:
    change(source)
    target = new_store(tmp_path / "target")
    report = sync(source, target)
    assert report.copied == ["demo:v2.0"]
    (refused,) = [*report.refused, *report.broken]
    assert any(why in refused for why in ("not the store's own", "it is a symlink", "is not a name that"))
    held = [each.read_bytes() for each in target.root.rglob("*") if each.is_file()]
    assert SECRET not in held
    assert target.release("demo", "v1.0") is None


def test_the_command_copies_the_others_and_ends_with_8(source: Store, tmp_path: Path) -> None:
    one_more_link(source)
    new_store(tmp_path / "target")
    argv = [sys.executable, "-m", "pipeline", "store", "sync", source.root, tmp_path / "target"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (8, "demo:v2.0\n"), done.stderr
    assert f"not everything was copied: {beside(source)}/notes is a link" in done.stderr


def test_a_store_whose_meta_folder_is_elsewhere_is_not_copied(source: Store, tmp_path: Path) -> None:
    a_meta_folder_elsewhere(source)
    report = sync(source, new_store(tmp_path / "target"))
    assert report.copied == []
    assert len(report.refused) == 2


@pytest.mark.needs("root")
@pytest.mark.parametrize("how", ["attachment", "record"])
def test_a_hard_link_to_a_file_of_another_user_is_refused(source: Store, tmp_path: Path, how: str) -> None:
    """Where fs.protected_hardlinks is 0, whoever can write the store can give root's file a name in it."""
    secret = tmp_path / "elsewhere" / SBOM
    secret.chmod(0o600)
    for path in (source.root, *source.root.rglob("*")):
        os.chown(path, 60011, 60011, follow_symlinks=False)
    place = beside(source) / SBOM if how == "attachment" else source.layout.record("demo", "v1.0", LINUX)
    if how == "record":
        secret.write_bytes(place.read_bytes())
    place.unlink()
    os.link(secret, place)
    report = sync(source, new_store(tmp_path / "target"))
    assert report.copied == ["demo:v2.0"]
    assert len(report.refused) == 1


def test_a_sync_writes_through_no_link_of_the_target(source: Store, tmp_path: Path) -> None:
    target = new_store(tmp_path / "target")
    sync(source, target, names=["demo:v2.0"])
    victim = tmp_path / "victim"
    victim.mkdir()
    beside(target).symlink_to(victim)
    report = sync(source, target)
    assert (report.copied, len(report.refused)) == ([], 1)
    assert list(victim.iterdir()) == []


@pytest.mark.parametrize("how", ["link", "pipe"])
def test_a_planted_half_copy_is_not_written_to(source: Store, tmp_path: Path, how: str) -> None:
    target = new_store(tmp_path / "target")
    target.prepare()
    victim = tmp_path / "victim"
    victim.write_bytes(b"kept")
    planted = target.layout.blobs / f".tmp.x.{source.resolve('demo:v1.0').sha256}.sync"
    if how == "link":
        planted.symlink_to(victim)
    else:
        os.mkfifo(planted)
    os.utime(planted, (1, 1), follow_symlinks=False)
    assert sync(source, target).copied == ["demo:v1.0", "demo:v2.0"]
    assert victim.read_bytes() == b"kept"
    assert os.path.lexists(planted)


@pytest.mark.parametrize("change", [a_link_to_a_file, a_folder_of_attachments_elsewhere])
def test_other_readers_of_attachments_refuse_it_too(source: Store, change: Change) -> None:
    before, after = source.resolve("demo:v1.0"), source.resolve("demo:v2.0")
    change(source)
    with pytest.raises(PublishError, match="not the store's own"):
        attachments.read(source.layout, before, SBOM)
    with pytest.raises(FormatError, match="not the store's own"):
        sbom.comparable(source.layout, before, after)


def test_a_signature_behind_a_link_does_not_count(source: Store, tmp_path: Path) -> None:
    release = source.resolve("demo:v1.0")
    (tmp_path / "elsewhere" / "x.dsse.json").write_text(json.dumps({}))
    (beside(source) / "x.dsse.json").symlink_to(tmp_path / "elsewhere" / "x.dsse.json")
    with pytest.raises(VerificationError, match="no signature"):
        signatures.verify(source.layout, release, [])
