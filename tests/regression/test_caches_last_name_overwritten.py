"""What a person or a backup took out of a store is not forgotten by the next writer of a cache.

Caches may only add reasons to keep bytes. So no cache is overwritten while it is all that names some: else
the first prune keeps them and the second one deletes them.
"""

from __future__ import annotations

import contextlib
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from pipeline.cli import app as command_line
from pipeline.errors import SqshpipeError
from pipeline.store import prune, restore
from pipeline.store.retention import Policy
from pipeline.store.store import Store
from tests.support.store.releases import new_store, publish, record_for

NOW = Policy(keep=1, named_grace=timedelta(0), delete_after=timedelta(0))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = new_store(tmp_path / "containers")
    for image in ("alpha", "beta"):
        publish(made, "v1.0", f"{image} one".encode(), image=image)
        publish(made, "v1.1", f"{image} two".encode(), image=image)
    return made


def everything(store: Store) -> None:
    """What writes caches: another publish, a promote, a scrub of all, and prune."""
    publish(store, "v2.0", image="alpha")
    with contextlib.suppress(SqshpipeError):
        store.promote("beta:v1.0", "stable")
    for _ in range(2):
        prune.prune(store.layout, NOW, prune.no_jobs)
    with contextlib.suppress(SqshpipeError):
        store.rebuild()
    for _ in range(2):
        prune.prune(store.layout, NOW, prune.no_jobs)


@pytest.mark.parametrize("instead", ["nothing", "file", "folder"])
def test_the_folder_of_an_image_is_gone(store: Store, instead: str) -> None:
    blobs = [store.resolve(f"beta:{version}").path for version in ("v1.0", "v1.1")]
    folder = store.layout.image("beta")
    kept = folder.with_name(".away")
    folder.rename(kept)
    if instead == "file":
        folder.write_bytes(b"x")
    elif instead == "folder":
        folder.mkdir()
    publish(store, "v2.0", image="alpha")
    for _ in range(2):
        report = prune.prune(store.layout, NOW, prune.no_jobs)
        assert any("beta" in sentence and "missing" in sentence for sentence in report.broken)
    assert all(blob.exists() for blob in blobs)
    if instead != "folder":
        everything(store)
        assert all(blob.exists() for blob in blobs)
    shutil.rmtree(folder) if folder.is_dir() else folder.unlink(missing_ok=True)
    kept.rename(folder)
    store.refresh("beta")
    assert [store.resolve(f"beta:{version}").path for version in ("v1.0", "v1.1")] == blobs
    assert not prune.prune(store.layout, NOW, prune.no_jobs).broken


def test_an_image_is_brought_back_to_an_earlier_state(store: Store, tmp_path: Path) -> None:
    shutil.copytree(store.layout.image("beta"), tmp_path / "backup", symlinks=True)
    newer = publish(store, "v1.2", b"beta three", image="beta")
    shutil.rmtree(store.layout.image("beta"))
    shutil.copytree(tmp_path / "backup", store.layout.image("beta"), symlinks=True)
    publish(store, "v2.0", image="alpha")
    for _ in range(2):
        report = prune.prune(store.layout, NOW, prune.no_jobs)
        assert any("manifest.json contains it" in sentence for sentence in report.broken)
    assert newer.path.exists()


def test_record_and_link_of_a_release_that_no_event_names_are_gone(store: Store) -> None:
    content = b"beta three"
    with store.staging() as staged:
        staged.write_bytes(content)
        release = store.publish(record_for(content, "v1.2", image="beta"), staged, channels=())
    for path in store.layout.image("beta").glob("v1.2*"):
        path.unlink()
    everything(store)
    assert release.path.exists()
    restore.restore(store.layout, "beta:v1.2", "linux/amd64")
    assert store.release("beta", "v1.2") is not None


def test_rebuild_ends_with_8_while_something_cannot_be_read(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["sqshpipe", "store", "rebuild", "--store", str(store.root)])
    assert command_line._run() == 0
    store.layout.image("beta").rename(store.root / ".away")
    assert command_line._run() == 8
    assert "beta is missing: manifest.json names its releases" in capsys.readouterr().err.replace("\n", " ")
