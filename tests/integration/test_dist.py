"""The wheel and the sdist that a release would have, and the wheel used alone, without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import __version__
from tests.support.dist import ROOT, problems
from tests.support.showcase import showcase


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True, timeout=240)
    return folder


def test_they_hold_what_they_must_and_nothing_else(dist: Path) -> None:
    assert problems(dist, f"v{__version__}") == []
    assert problems(dist, "v9.9")[0].startswith("the tag is v9.9")


def test_the_wheel_works_without_the_checkout(dist: Path, tmp_path: Path) -> None:
    showcase(tmp_path / "store", tmp_path / "work")
    place = tmp_path / "installed"
    wheel = next(dist.glob("*.whl"))
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", place, wheel]
    subprocess.run(pip, check=True, timeout=120)
    environment = {**os.environ, "PYTHONPATH": str(place), "SQSHPIPE_STORE": str(tmp_path / "store")}

    def sqshpipe(*words: str) -> str:
        argv = [sys.executable, "-m", "pipeline", *words]
        return subprocess.run(
            argv, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    assert sqshpipe("resolve", "pytorch").endswith("/pytorch/24.03.sqsh\n")
    sqshpipe("init", "mine")
    sqshpipe("report", "-o", "page.html", "--config", "none.yaml")
    assert "megatron-training" in (tmp_path / "page.html").read_text()
    assert "#!/bin/" in sqshpipe("job", "render", "pytorch", "--", "python", "train.py")
