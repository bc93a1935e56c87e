"""A copy on a node out of copies of other releases: what is read, what is reused, what is not believed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import VerificationError
from pipeline.node import prewarm_on_node, shared_copy
from pipeline.node.prewarm_on_node import Warmed
from pipeline.store.layout import RANGES
from pipeline.store.sharing import ranges_of
from pipeline.store.store import Store
from tests.support.store.releases import new_store, publish
from tests.support.store.versions import layer, release


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """v1.0, versions with another top, middle or base layer, and one with nothing in common."""
    folder = tmp_path_factory.mktemp("made")
    store = new_store(folder / "store")
    base, middle, top = layer("a", 6), layer("b", 4), layer("c", 2)
    new = layer("new", 1)
    for version, layers in {
        "v1.0": (base, middle, top),
        "v1.1": (base, middle, new),
        "v1.2": (base, new, top),
        "v1.3": (new, middle, top),
    }.items():
        release(store, version, *layers, folder=folder)
    publish(store, "v9.0", b"made elsewhere" * 1000)
    return store


def warm(store: Store, version: str, folder: Path, *, ranges: bool = True) -> Warmed:
    found = store.resolve(f"demo:{version}")
    beside = store.layout.attachments("demo", version, "linux/amd64") / RANGES
    return prewarm_on_node.onto_disk(
        found.path, found.sha256, folder, state=None, ranges=beside if ranges else None, reserve=0
    )


def changed(store: Store, version: str, before: str = "v1.0") -> int:
    """Bytes of packs that the version before lacks, and what is in no pack."""
    wanted, held = (ranges_of(store.layout, store.resolve(f"demo:{each}")) for each in (version, before))
    assert wanted is not None
    assert held is not None
    common = {number for number, (key, _) in enumerate(wanted.packs) if key in held.keys}
    return wanted.size - sum(item.length for item in wanted.ranges if item.layer in common)


def copies(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("version", ["v1.1", "v1.2", "v1.3"], ids=["top", "middle", "base"])
def test_only_what_differs_is_read(store: Store, tmp_path: Path, version: str) -> None:
    first = warm(store, "v1.0", tmp_path / "nvme")
    assert (first.read, first.reused) == (first.size, 0)
    second = warm(store, version, tmp_path / "nvme")
    release = store.resolve(f"demo:{version}")
    assert second.path.read_bytes() == release.path.read_bytes()
    assert second.read + second.reused == second.size
    assert second.read <= changed(store, version) + second.size // 100
    assert second.reused > 6 << 20
    again = warm(store, version, tmp_path / "nvme")
    assert (again.there, again.read) == (True, 0)


def test_a_copy_that_was_made_of_others_serves_too(store: Store, tmp_path: Path) -> None:
    for version in ("v1.0", "v1.1"):
        warm(store, version, tmp_path / "nvme")
    old = store.resolve("demo:v1.0").sha256
    (tmp_path / "nvme" / f"{old}.sqsh").unlink()  # its ranges stay, and say nothing without it
    third = warm(store, "v1.2", tmp_path / "nvme")
    assert third.path.read_bytes() == store.resolve("demo:v1.2").path.read_bytes()
    assert third.reused > 6 << 20


def test_without_anything_in_common_all_is_read(store: Store, tmp_path: Path) -> None:
    warm(store, "v1.0", tmp_path / "nvme")
    done = warm(store, "v9.0", tmp_path / "nvme")
    assert (done.read, done.reused) == (done.size, 0)
    assert warm(store, "v1.1", tmp_path / "nvme", ranges=False).reused == 0


def flip(path: Path, at: int) -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    path.chmod(0o444)


def test_a_flipped_bit_in_the_old_copy_is_not_copied(store: Store, tmp_path: Path) -> None:
    old = warm(store, "v1.0", tmp_path / "nvme")
    flip(old.path, 1 << 20)
    new = warm(store, "v1.1", tmp_path / "nvme")
    assert new.path.read_bytes() == store.resolve("demo:v1.1").path.read_bytes()
    assert (new.read, new.reused) == (new.size, 0)


@pytest.mark.parametrize("lie", ["shifted", "other key", "no json", "huge", "a link"])
def test_ranges_that_lie_cost_time_alone(store: Store, tmp_path: Path, lie: str) -> None:
    old = warm(store, "v1.0", tmp_path / "nvme")
    beside = old.path.with_suffix(shared_copy.SUFFIX)
    right = ranges_of(store.layout, store.resolve("demo:v1.0"))
    assert right is not None
    item = right.ranges[0]
    text = right.encode()
    if lie == "shifted":
        pair = f"{item.target},{item.length}]".encode()
        text = text.replace(pair, f"{item.target + 1},{item.length - 1}]".encode())
        assert text != right.encode()
    elif lie == "other key":
        text = text.replace(right.packs[1][0].encode(), b"0" * 64).replace(
            right.packs[0][0].encode(), right.packs[1][0].encode()
        )
    beside.unlink()
    if lie == "a link":
        beside.symlink_to("/dev/zero")
    else:
        beside.write_bytes({"no json": b"{", "huge": b" " * (5 << 20)}.get(lie, text))
    new = warm(store, "v1.1", tmp_path / "nvme")
    assert new.path.read_bytes() == store.resolve("demo:v1.1").path.read_bytes()
    assert not [name for name in copies(tmp_path / "nvme") if name.startswith(".tmp")]


def test_wrong_bytes_in_the_store_get_no_name(store: Store, tmp_path: Path) -> None:
    warm(store, "v1.0", tmp_path / "nvme")
    file = tmp_path / "damaged.sqsh"
    file.write_bytes(store.resolve("demo:v1.1").path.read_bytes())
    flip(file, file.stat().st_size - 5000)
    before = copies(tmp_path / "nvme")
    beside = store.layout.attachments("demo", "v1.1", "linux/amd64") / RANGES
    with pytest.raises(VerificationError):
        prewarm_on_node.onto_disk(
            file, store.resolve("demo:v1.1").sha256, tmp_path / "nvme", state=None, ranges=beside, reserve=0
        )
    assert copies(tmp_path / "nvme") == before


@pytest.mark.needs("root")
def test_copies_and_ranges_of_another_user_are_not_used(store: Store, tmp_path: Path) -> None:
    old = warm(store, "v1.0", tmp_path / "nvme")
    os.chown(old.path.with_suffix(shared_copy.SUFFIX), 12345, 12345)
    assert warm(store, "v1.1", tmp_path / "nvme").reused == 0


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    disk, point = tmp_path / "disk", tmp_path / "point"
    point.mkdir()
    with disk.open("wb") as file:
        file.truncate(400 << 20)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", disk], check=True)
    subprocess.run(["mount", "-o", "loop", disk, point], check=True)
    yield point
    subprocess.run(["umount", "-l", point], check=True)


def used(point: Path) -> int:
    os.sync()
    found = os.statvfs(point)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


@pytest.mark.needs("root", "/dev/loop-control", "mkfs.xfs", "mount")
@pytest.mark.parametrize("version", ["v1.1", "v1.2", "v1.3"], ids=["top", "middle", "base"])
def test_on_xfs_a_version_takes_the_room_of_its_difference(store: Store, xfs: Path, version: str) -> None:
    warm(store, "v1.0", xfs / "nvme")
    before = used(xfs)
    new = warm(store, version, xfs / "nvme")
    assert new.path.read_bytes() == store.resolve(f"demo:{version}").path.read_bytes()
    taken = used(xfs) - before
    assert taken <= changed(store, version) + new.size // 100 + (256 << 10), "it was cloned"
    assert taken < new.size // 2
