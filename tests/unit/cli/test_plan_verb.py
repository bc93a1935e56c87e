"""``sqshpipe plan`` as a script uses it: exit code 0 or 10, JSON, and nothing is another after it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipeline.cli.app import app


def plan(folder: Path, *words: str) -> Result:
    words = ("plan", *words, "--config", str(folder / "images.yaml"))
    return CliRunner().invoke(app, words, catch_exceptions=False)


def tree(folder: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Every path below ``folder`` with mode, inode, time of change and bytes."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (status.st_mode, status.st_ino, status.st_ctime_ns, content)
    return found


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQSHPIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SQSHPIPE_SCRATCH", str(tmp_path / "scratch"))
    for name in ("SQSHPIPE_STORE", "SQSHPIPE_REGISTRY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("words", "code"), [([], 0), (["--tag", "v1"], 0), (["--tag", "v2"], 10)], ids=["", "v1", "v2"]
)
def test_exit_code_says_whether_something_would_run_and_nothing_changes(
    released: Path, words: list[str], code: int
) -> None:
    before = tree(released)
    for more in ([], ["--json"]):
        told = plan(released, *words, *more)
        assert told.exit_code == code
    assert json.loads(told.stdout)["changes"] is (code == 10)
    assert tree(released) == before


def test_where_and_how_much_is_told_to_people_and_machines(released: Path) -> None:
    told = plan(released, "--tag", "v2")
    target = str(released / "store" / "demo" / "v2.sqsh")
    assert target in told.stdout
    (image,) = json.loads(plan(released, "--tag", "v2", "--json").stdout)["images"]
    assert (image["publishes"], image["writes"]) == (target, 0)  # the same bytes under one more name
