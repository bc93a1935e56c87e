"""Before the work: room, rights, and folders that a team shares."""

from __future__ import annotations

import errno
import grp
import os
import stat
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, ToolError
from pipeline.store import checkup, folders, space
from pipeline.store.adopt import guess_name
from pipeline.store.store import Store
from pipeline.system.mountinfo import MountPoint
from pipeline.system.temporary import temporary_name
from tests.support.store.releases import folder, new_store, publish


def test_no_room_is_reported_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(tmp_path / "containers")
    monkeypatch.setattr(space, "MARGIN_BYTES", 1 << 60)
    with pytest.raises(ToolError, match="is needed"):
        publish(store, "v1.0")
    assert list(store.layout.blobs.iterdir()) == []


def test_a_private_umask_does_not_hide_the_store(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        release = publish(new_store(tmp_path / "containers"), "v1.0")
    finally:
        os.umask(before)
    for path in (tmp_path / "containers", release.link.parent, release.path.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert stat.S_IMODE((release.link.parent / "index.json").stat().st_mode) == 0o644


def test_a_shared_store_stays_shared_below(tmp_path: Path) -> None:
    root = tmp_path / "containers"
    root.mkdir()
    root.chmod(0o2770)
    before = os.umask(0o077)
    try:
        publish(Store(root), "v1.0")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in root.rglob("*") if path.is_dir()}
    assert modes.pop("leases") == 0o1777
    assert set(modes.values()) == {0o2770}


def test_a_group_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no group"):
        Store(tmp_path / "containers", group="no-such-group").create()
    folders.create_root(tmp_path / "other")
    with pytest.raises(ConfigError, match="no group"):
        space.check_group(Store(tmp_path / "other").layout, "no-such-group")


def test_what_examination_finds(tmp_path: Path) -> None:
    store = new_store(tmp_path / "containers")
    assert {finding.level for finding in checkup.examine(store.root)} <= {"ok", "warn"}  # room on this disk
    assert [finding.level for finding in checkup.examine(tmp_path / "nothing")] == ["fail"]
    publish(store, "v1.0")
    found = {finding.found: finding.level for finding in checkup.examine(store.root)}
    assert found["files and hard links can be made"] == "ok"
    assert set(found.values()) <= {"ok", "warn"}
    assert not any("leases" in text for text in found)
    store.layout.leases.rmdir()
    store.layout.head("demo").unlink()
    (store.root / "demo/v0.json").write_text("{")
    worse = {finding.found: finding.level for finding in checkup.examine(store.root)}
    assert any("no folder for leases" in text for text in worse)
    assert worse["the index of demo is stale"] == "warn"
    assert any("v0.json is damaged" in text and level == "fail" for text, level in worse.items())
    assert checkup.examine(tmp_path / "containers/manifest.json")[0].level == "fail"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("nvidia+pytorch+24.01-py3.sqsh", ("nvidia-pytorch", "24.01-py3")),
        ("ubuntu+22.04.sqsh", ("ubuntu", "22.04")),
        ("team+app-v2.1.sqsh", ("team-app", "v2.1")),
        ("megatron-training_v1.0.sqsh", ("megatron-training", "v1.0")),
        ("Demo-1.2-cuda.squashfs", ("demo", "1.2-cuda")),
        ("demo-v1.sqsh", ("demo", "v1")),
    ],
)
def test_names_of_hand_made_files(file: str, name: tuple[str, str]) -> None:
    assert guess_name(Path("/data") / file) == name


UNSAID = ["training.sqsh", "+v1.sqsh", "image_.sqsh", "library+ubuntu.sqsh", "nvidia+pytorch.sqsh"]


@pytest.mark.parametrize("file", UNSAID)
def test_names_that_do_not_say(file: str) -> None:
    with pytest.raises(ConfigError, match="does not say"):
        guess_name(Path(file))


@pytest.fixture
def lustre(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store seems to lie on Lustre, and `lfs` notes how it is called; gives that file."""
    log = tmp_path / "lfs.log"
    tools = tmp_path / "bin"
    tools.mkdir()
    lfs = tools / "lfs"
    lfs.write_text(
        f"""#!/bin/sh
echo "$@" >> {log}
case "$1 $4" in
"getstripe "*) case "$3" in */few*) echo 1 ;; *.sqsh) echo 4 ;; *) printf '4\\n4194304\\n' ;; esac ;;
"quota "*)
    case "$3" in
    -u) printf '/fsx\\n  900000*  0  1000000  -  3  0  0  -\\n' ;;
    -g) echo '/fsx 5 0 0 - 3 0 0 -' ;;
    esac ;;
esac
"""
    )
    lfs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    lustre = MountPoint(point=tmp_path, type="lustre")
    for module in (space, checkup):
        monkeypatch.setattr(module, "mount_of", lambda _: lustre)
    return log


def test_a_large_file_on_one_target_is_reported(
    tmp_path: Path, lustre: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(tmp_path / "containers")
    for name, size in (("few", 1 << 30), ("small", 1000), ("wide", 1 << 30)):
        file = store.layout.blobs / f"{name}{'0' * (64 - len(name))}.sqsh"
        file.touch()
        os.truncate(file, size)  # without a byte on the disk
    found = [one for one in checkup.examine(store.root) if "Lustre target" in one.found]
    assert [one.level for one in found] == ["warn"]
    assert "1 of the 2 largest files" in found[0].found
    assert "few" in found[0].found
    assert "0.63 GB/s" in found[0].found
    assert "lfs migrate" in found[0].advice
    monkeypatch.setattr(checkup, "mount_of", lambda _: MountPoint(point=tmp_path, type="nfs4"))
    assert not [one for one in checkup.examine(store.root) if "Lustre target" in one.found]


def test_a_new_store_on_lustre_is_striped_before_anything_is_written(tmp_path: Path, lustre: Path) -> None:
    store = new_store(tmp_path / "containers", stripe=(4, 4 << 20))
    publish(store, "v1.0")
    publish(store, "v1.1")
    assert lustre.read_text() == f"setstripe -c 4 -S 4194304 {store.layout.blobs}\n"
    assert checkup.examine(store.root, stripe=(4, 4 << 20)) == checkup.examine(store.root)
    reported = [finding.found for finding in checkup.examine(store.root, stripe=(8, 4 << 20))]
    assert f"{store.layout.blobs} is striped over 4 targets in 4194304 bytes" in reported


def test_striping_that_is_wished_for_elsewhere_is_reported(tmp_path: Path) -> None:
    store = new_store(tmp_path / "containers", stripe=(4, 4 << 20))
    publish(store, "v1.0")
    reported = [finding.found for finding in checkup.examine(store.root, stripe=(4, 4 << 20))]
    assert "store: {stripe: …} is set, and the store is not on Lustre" in reported


def test_the_quota_of_lustre_is_asked_where_space_cannot_be_reserved(
    tmp_path: Path, lustre: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(tmp_path / "containers")
    store.prepare()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setattr(space, "reserve", lambda *_: False)
    store.make_room(90_000_000)
    with pytest.raises(ToolError, match="102 MB are left of the quota") as caught:
        store.make_room(200_000_000)
    assert "raise the quota" in caught.value.hint
    assert folder(store.layout.blobs) == []


def test_a_quota_that_is_used_up_is_reported_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> bool:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    store = new_store(tmp_path / "containers")
    monkeypatch.setattr(space, "reserve", refuse)
    with pytest.raises(ToolError, match="quota there does not allow it"):
        store.make_room(2 << 20)
    assert folder(store.layout.blobs) == []


def test_a_store_that_a_group_cannot_work_in_is_reported(tmp_path: Path) -> None:
    name = grp.getgrgid(os.getgid()).gr_name
    publish(new_store(tmp_path / "alone"), "v1.0")
    reported = [finding.found for finding in checkup.examine(tmp_path / "alone", group=name)]
    assert any(f"not all of group {name} can publish" in text for text in reported)
    publish(new_store(tmp_path / "shared", group=name), "v1.0")
    reported = [finding.found for finding in checkup.examine(tmp_path / "shared", group=name)]
    assert not any("of group" in text for text in reported)


def test_what_killed_runs_left_is_reported(tmp_path: Path) -> None:
    store = new_store(tmp_path / "containers")
    publish(store, "v1.0")
    dead = temporary_name(".sqsh").replace(f".{os.getpid()}.", ".4194304.")
    (store.layout.blobs / dead).write_bytes(b"half")
    assert any("1 files of killed runs" in finding.found for finding in checkup.examine(store.root))
