from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pipeline.errors import ToolError
from pipeline.system import scratch
from pipeline.system.mountinfo import MountPoint
from pipeline.system.scratch import (
    PREFIX,
    SpaceRequirement,
    remove_tree,
    require_space,
    scratch_folder,
)


class LeavingError(Exception):
    pass


def test_the_folder_is_ours_alone_and_gone_afterwards(tmp_path: Path) -> None:
    with scratch_folder(tmp_path / "new") as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "file").write_text("x")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("error", [LeavingError, KeyboardInterrupt])
def test_the_folder_is_gone_after_an_exception(tmp_path: Path, error: type[BaseException]) -> None:
    def leave() -> None:
        with scratch_folder(tmp_path) as folder:
            (folder / "d").mkdir(mode=0)
            raise error

    with pytest.raises(error):
        leave()
    assert list(tmp_path.iterdir()) == []


def test_a_signal_during_the_removal_waits_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder stayed, and the message said that it was removed."""
    real, calls = scratch.remove_tree, list[Path]()

    def interrupted(folder: Path) -> None:
        calls.append(folder)
        if len(calls) == 1:
            (folder / "a").unlink()
            raise KeyboardInterrupt
        real(folder)

    monkeypatch.setattr(scratch, "remove_tree", interrupted)

    def work() -> None:
        with scratch_folder(tmp_path) as folder:
            (folder / "a").touch()
            (folder / "b").touch()

    with pytest.raises(KeyboardInterrupt):
        work()
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ToolError, match="cannot make a scratch folder") as caught,
        scratch_folder(tmp_path / "file"),
    ):
        pass
    assert "SQSHPIPE_SCRATCH" in caught.value.hint


def test_what_a_killed_run_left_is_removed_and_a_running_one_left_alone(tmp_path: Path) -> None:
    orphan = tmp_path / f"{PREFIX}host-1"
    orphan.mkdir()
    (orphan / "file").write_text("x")
    lock = tmp_path / f"{PREFIX}host-1.lock"
    lock.touch()
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / f"{PREFIX}host-2").symlink_to(other)
    (tmp_path / f"{PREFIX}host-2.lock").touch()
    with scratch_folder(tmp_path) as running:
        assert not orphan.exists()
        assert not lock.exists()
        with scratch_folder(tmp_path):
            assert running.exists()
    assert other.exists()


def test_what_others_keep_beside_scratch_is_left_alone(tmp_path: Path) -> None:
    """A registry's blobs, a scanner's report: old, without a lock file, and named after the program too."""
    theirs = [tmp_path / name for name in ("sqshpipe-registry-x", f"{PREFIX}by-somebody", "sqshpipe-data")]
    for folder in theirs:
        folder.mkdir()
    (tmp_path / "sqshpipe-registry-x.lock").touch()
    with scratch_folder(tmp_path):
        assert all(folder.exists() for folder in theirs)


@pytest.mark.parametrize("kind", ["folder", "link", "fifo"])
def test_a_lock_that_is_no_file_removes_nothing_and_holds_nobody_up(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / f"{PREFIX}host-1"
    folder.mkdir()
    lock = tmp_path / f"{PREFIX}host-1.lock"
    if kind == "folder":
        lock.mkdir()
    elif kind == "link":
        (tmp_path / "file").touch()
        lock.symlink_to(tmp_path / "file")
    else:
        os.mkfifo(lock)
    with scratch_folder(tmp_path):
        assert folder.exists()
    assert os.path.lexists(lock)


def test_a_lock_file_of_somebody_else_is_not_taken(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to give a file away")
    folder = tmp_path / f"{PREFIX}host-1"
    folder.mkdir()
    lock = tmp_path / f"{PREFIX}host-1.lock"
    lock.touch()
    os.chown(lock, 1234, 1234)
    with scratch_folder(tmp_path):
        assert folder.exists()
    assert lock.exists()


def test_locks_that_may_reach_no_further_than_a_host_are_taken_for_this_host_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lustre may lock within one client: a lock that can be taken says nothing about another host's run."""
    monkeypatch.setattr(scratch, "mount_of", lambda _path: MountPoint(point=tmp_path, type="lustre"))
    here = os.uname().nodename.replace("-", "_").replace(".", "_")
    for host in (here, "another"):
        (tmp_path / f"{PREFIX}{host}-1").mkdir()
        (tmp_path / f"{PREFIX}{host}-1.lock").touch()
    with scratch_folder(tmp_path):
        assert not (tmp_path / f"{PREFIX}{here}-1").exists()
        assert (tmp_path / f"{PREFIX}another-1").exists()


def test_a_folder_that_cannot_be_removed_keeps_its_lock_file_for_a_later_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(scratch, "remove_tree", lambda _folder: None)
        with scratch_folder(tmp_path) as folder:
            pass
    assert folder.exists()
    with scratch_folder(tmp_path):
        assert not folder.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_tree_deeper_than_any_path_is_removed_without_touching_what_links_point_to(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    folder = tmp_path / "deep"
    folder.mkdir()
    (folder / "link").symlink_to(outside)
    descriptor = os.open(folder, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=descriptor)
        os.symlink(str(outside), "l", dir_fd=descriptor)
        below = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)
    remove_tree(folder)
    assert not folder.exists()
    assert (outside / "kept").exists()


def test_folders_without_permissions_and_names_of_any_bytes_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    inner = folder / "a" / "b"
    inner.mkdir(parents=True)
    Path(os.fsdecode(bytes(inner) + b"/caf\xe9\n")).write_text("x")
    inner.chmod(0)
    (folder / "a").chmod(0)
    remove_tree(folder)
    assert not folder.exists()
    remove_tree(folder)


def test_space_that_is_there_passes(tmp_path: Path) -> None:
    require_space([SpaceRequirement(folder=tmp_path / "not" / "yet", size=1, purpose="unpacking")])


def test_missing_space_is_reported_with_place_and_amount(tmp_path: Path) -> None:
    half = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize * 2 // 3
    needs = [
        SpaceRequirement(folder=tmp_path, size=half, purpose="layers"),
        SpaceRequirement(folder=tmp_path / "scratch", size=half, purpose="unpacking"),
    ]
    with pytest.raises(ToolError, match=r"not enough space on .* missing") as caught:
        require_space(needs)  # each fits, both together do not
    assert "for layers" in caught.value.message
    assert f"for unpacking in {tmp_path}/scratch" in caught.value.message
    assert "SQSHPIPE_SCRATCH" in caught.value.hint


def test_missing_inodes_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(tmp_path)
    few = os.statvfs_result((*real[:5], 100, 10, 10, *real[8:]))
    monkeypatch.setattr(os, "statvfs", lambda _path: few)
    with pytest.raises(ToolError, match=r"not enough inodes .* 10 free, 11 needed"):
        require_space([SpaceRequirement(folder=tmp_path, size=0, purpose="unpacking", files=11)])


def test_removal_is_reported_when_it_does_not_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "busy"
    (folder / "d").mkdir(parents=True)

    def refuse(*_arguments: object, **_more: object) -> None:
        raise OSError(16, "busy")

    reported: list[str] = []
    monkeypatch.setattr(os, "rename", refuse)
    monkeypatch.setattr(scratch.shutil, "rmtree", lambda *_, **__: None)
    monkeypatch.setattr(scratch.log, "warning", lambda text, **_: reported.append(text), raising=False)
    remove_tree(folder)
    assert reported == ["scratch could not be removed"]
