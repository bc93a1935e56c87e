"""A run that is killed at any of its calls leaves nothing that a later run does not remove."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.system import scratch
from pipeline.system.scratch import scratch_folder
from tests.support.faults.crash import Nursery, Point, calls, run_with


def test_killed_at_every_call(tmp_path: Path) -> None:
    nursery = Nursery()
    try:
        (tmp_path / "first").mkdir()
        found = calls(nursery, "scratch", tmp_path / "first", tmp_path / "log", more=("flock", "rmdir"))
        assert {"openat", "flock", "mkdir", "unlink", "rmdir"} <= {call for call, _, _ in found}
        left = 0
        for number, (call, when, shown) in enumerate(found):
            root = tmp_path / f"scratch-{number}"
            root.mkdir()
            point = Point(call, when, "KILL", shown)
            ended = run_with(nursery, point, "scratch", root)
            assert ended.returncode == -9, point
            left += bool(list(root.iterdir()))
            with scratch_folder(root) as running:
                assert sorted(path.name for path in root.iterdir()) == [
                    running.name,
                    f"{running.name}.lock",
                ], point
            assert list(root.iterdir()) == [], point
        assert left > 10, "no kill left anything, so nothing was tried"
    finally:
        nursery.close()


@pytest.mark.parametrize("step", ["_is_named", "remove_tree"])
def test_a_running_one_is_never_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Another run looks for orphans in the middle of each step of the first."""
    real = getattr(scratch, step)

    def stepped(*arguments: object) -> object:
        monkeypatch.undo()
        with scratch_folder(tmp_path):
            pass
        return real(*arguments)

    monkeypatch.setattr(scratch, step, stepped)
    with scratch_folder(tmp_path) as folder:
        (folder / "file").write_bytes(b"x")
        with scratch_folder(tmp_path):
            assert (folder / "file").read_bytes() == b"x"
    assert getattr(scratch, step) is real
    assert list(tmp_path.iterdir()) == []
