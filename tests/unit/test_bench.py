"""``python -m bench``: every benchmark stands in the documents; one without its programs is left out."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from bench.__main__ import NEEDS, RUNNERS
from bench.figures import PAGES, PARTS

ROOT = Path(__file__).parents[2]


def test_every_benchmark_is_there_and_in_the_documents() -> None:
    written = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert set(RUNNERS) == {name for name in PARTS if not name.startswith("readme")}
    assert set(NEEDS) <= set(RUNNERS)
    for name in RUNNERS:
        assert find_spec(f"bench.{name}") is not None
    for part in PARTS:
        assert f"<!-- figures: {part} -->" in written


def test_one_whose_programs_are_missing_is_left_out_and_that_is_reported(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "bench", "--size", "tiny", "--output", str(tmp_path), "mirror", "plan"]
    done = subprocess.run(
        argv, cwd=ROOT, env={**os.environ, "PATH": "/nonexistent"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        "left out: mirror: docker-registry is not installed",
        "left out: plan: docker-registry is not installed",
    ]
    assert not list(tmp_path.iterdir())
