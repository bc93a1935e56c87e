"""A pipe in place of bytes makes nobody wait; one damaged image or a user's mount stops nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, ToolError, VerificationError
from pipeline.node import prewarm_on_node
from pipeline.store import leases, prune, restore
from pipeline.store.retention import Policy
from pipeline.store.store import Store
from pipeline.store.sync import sync
from tests.support.store.releases import new_store, publish
from tests.support.waiting import until

AMD64 = "linux/amd64"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = new_store(tmp_path / "containers")
    for image in ("alpha", "beta"):
        publish(made, "v1.0", f"bytes of {image}".encode(), image=image)
    return made


def pipe(path: Path) -> Path:
    path.unlink()
    os.mkfifo(path)
    return path


@pytest.mark.timeout(60)
def test_a_pipe_in_place_of_bytes(store: Store, tmp_path: Path) -> None:
    blob = pipe(store.resolve("alpha:v1.0").path)
    with pytest.raises(ToolError, match="cannot read"):
        prewarm_on_node.into_page_cache(blob, blob.stem)
    with pytest.raises(ToolError, match="cannot prewarm"):
        prewarm_on_node.onto_disk(blob, blob.stem, tmp_path / "local", state=None, reserve=0)
    record = store.layout.record("alpha", "v1.0", AMD64)
    record.unlink()
    record.write_bytes(b"damaged")
    with pytest.raises(VerificationError, match="not a regular file"):
        restore.restore(store.layout, "alpha:v1.0", AMD64)
    assert restore.bury(store.layout, "alpha:v1.0", AMD64) == record
    with pytest.raises(ConfigError, match="is sound"):
        restore.bury(store.layout, "alpha:v1.0", AMD64)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("where", ["source", "target"])
def test_a_damaged_image_does_not_keep_others_from_being_copied(
    store: Store, tmp_path: Path, where: str
) -> None:
    target = new_store(tmp_path / "target")
    sync(store, target)
    for image in ("alpha", "beta"):
        publish(store, "v1.1", f"more of {image}".encode(), image=image)
        store.promote(f"{image}:v1.1", "stable")
    pipe((store if where == "source" else target).layout.event("alpha", 1))
    report = sync(store, target, mirror_channels=["stable"])
    assert report.copied == ["beta:v1.1"]
    assert target.resolve("beta:stable").version == "v1.1"
    assert len(report.broken) == 1
    assert "alpha/.meta/events/00000001.json" in report.broken[0]


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("squashfuse"), reason="needs root and squashfuse")
def test_a_dead_file_system_that_a_user_mounted_among_the_leases_stops_no_prune(
    store: Store, tmp_path: Path
) -> None:
    """With FUSE any user can mount on a folder of theirs, and end the process that serves it."""
    image, place = tmp_path / "x.sqsh", store.layout.leases / "mine\n.json"
    (tmp_path / "content").mkdir()
    subprocess.run(["mksquashfs", tmp_path / "content", image, "-quiet"], check=True, capture_output=True)
    place.mkdir()
    with subprocess.Popen(["squashfuse", "-f", image, place], stderr=subprocess.DEVNULL) as server:
        try:
            assert until(place.is_mount)
        finally:
            server.kill()
    try:
        with pytest.raises(OSError, match="not connected"):
            os.listdir(place)  # noqa: PTH208 - the kernel has the answer of stat in its memory
        assert leases.read_all(store.layout, warn=True) == []
        prune.prune(store.layout, Policy(), prune.no_jobs)
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
