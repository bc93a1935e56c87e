"""The wheel and the sdist that a release would have, and the wheel used alone, without the checkout."""

from __future__ import annotations

import os
import shutil
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
    assert "#!/bin/" in sqshpipe("job", "script", "pytorch", "--", "python", "train.py")


@pytest.mark.needs("dockerd", "docker-registry", "htpasswd", "mksquashfs", "unshare", "/dev/fuse", "root")
@pytest.mark.timeout(600)
def test_a_fresh_environment_with_the_wheel_runs_the_demo(dist: Path, tmp_path: Path) -> None:
    """The wheel and what it depends on, nothing else; the code of the demo is beside it, the package not."""
    place = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", place], check=True, timeout=120)
    wheel = next(dist.glob("*.whl"))
    pip = [place / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", wheel]
    subprocess.run(pip, check=True, timeout=400)
    for each in (ROOT / "demo").rglob("*"):
        if each.is_file() and each.suffix != ".pyc":
            target = tmp_path / "work" / each.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(each, target)
    names = ("SQSHPIPE_", "PYTHON", "DOCKER_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(names)}
    environment["PATH"] = f"{place}/bin:{environment['PATH']}"

    def run(*words: str) -> str:
        return subprocess.run(
            words,
            cwd=tmp_path / "work",
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        ).stdout

    where = run("python", "-c", "import pipeline; print(pipeline.__file__)")
    assert where.startswith(str(place)), "the package is the wheel's"
    said = run("python", "-m", "demo", str(tmp_path / "out"))
    assert "all that it started is stopped" in said
    store = str(tmp_path / "out" / "containers")
    assert run("sqshpipe", "resolve", "demo:v1.0", "--store", store) == f"{store}/demo/v1.0.sqsh\n"
    assert "v1.0" in run("sqshpipe", "list", "--store", store)
    assert "sqshpipe" in run("sqshpipe", "--help")
    resolve = ("resolve", "demo:v1.0", "--store", store)
    assert run("python", "-m", "sqshpipe", *resolve) == run("sqshpipe", *resolve)
    show = "import importlib.metadata as m; print(*m.metadata('sqshpipe').get_all('Classifier'), sep='\\n')"
    assert "Typing :: Typed" in run("python", "-c", show)
    assert (
        place
        / "lib"
        / f"python{sys.version_info[0]}.{sys.version_info[1]}"
        / "site-packages"
        / "pipeline"
        / "py.typed"
    ).exists()
