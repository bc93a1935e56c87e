"""A shell whose working directory was deleted: jobs and timers have that, and most verbs need no folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.store.releases import new_store, publish

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["list"], 0),
        (["resolve", "demo:v1.0"], 0),
        (["store", "prune", "--dry-run", "--no-slurm"], 0),
        (["store", "scrub"], 0),
        (["store", "prune", "--store", "here", "--dry-run", "--no-slurm"], 2),
        (["schedule", "cron"], 2),
        (["plan"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_verb_ends_as_elsewhere_or_says_why(words: list[str], code: int, tmp_path: Path) -> None:
    store = new_store(tmp_path / "store")
    publish(store, "v1.0", platform="linux/amd64")
    gone = tmp_path / "gone"
    gone.mkdir()
    script = 'cd "$1" && rmdir "$1" && shift && exec "$@"'
    argv = ["/bin/sh", "-c", script, "sh", gone, sys.executable, "-m", "pipeline", *words]
    where = {"PYTHONPATH": str(ROOT), "SQSHPIPE_STORE": str(store.root), "SQSHPIPE_PLATFORM": "linux/amd64"}
    done = subprocess.run(argv, env={**os.environ, **where}, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "defect" not in done.stderr
