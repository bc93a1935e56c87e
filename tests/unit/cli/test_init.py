from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.config import load
from pipeline.errors import ConfigError


def _init(*words: str) -> str:
    result = CliRunner().invoke(app, ["-q", "init", *words])
    if result.exception:
        raise result.exception
    return result.stdout


def test_what_it_writes_is_a_configuration_that_loads(tmp_path: Path) -> None:
    said = _init(
        "mine",
        "--base",
        "debian:12",
        "--registry",
        "127.0.0.1:5000/a",
        "--store",
        "/s",
        "--folder",
        str(tmp_path),
    )
    assert sorted(said.splitlines()) == sorted(str(path) for path in tmp_path.rglob("*") if path.is_file())
    config = load(tmp_path / "images.yaml")
    spec = config.image("mine")
    assert str(spec.base) == "docker.io/library/debian:12"
    assert str(config.registry.repository("mine")) == "127.0.0.1:5000/a/mine"
    assert config.store.root == Path("/s")
    assert spec.dockerfile is not None
    assert "ARG BASE_IMAGE=docker.io/library/debian:12\nFROM ${BASE_IMAGE}\n" in spec.dockerfile.read_text()
    compile((spec.dockerfile.parent / "train.py").read_text(), "train.py", "exec")
    workflow = yaml.safe_load((tmp_path / ".github/workflows/images.yml").read_text())
    assert workflow["permissions"] == {}
    assert workflow["jobs"]["images"]["runs-on"].startswith("${{")
    for step in workflow["jobs"]["images"]["steps"]:
        assert "uses" not in step or len(step["uses"].rpartition("@")[2]) == 40, (
            "actions are pinned by commit"
        )


def test_nothing_of_somebodys_is_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "dockerfiles" / "mine" / "Dockerfile"
    mine.parent.mkdir(parents=True)
    mine.write_text("FROM scratch\n")
    _init("mine", "--folder", str(tmp_path))
    assert mine.read_text() == "FROM scratch\n"
    with pytest.raises(ConfigError, match=r"images\.yaml is there already"):
        _init("other", "--folder", str(tmp_path))


@pytest.mark.parametrize("words", [["../up"], ["mine", "--base", "a b"]])
def test_names_that_cannot_be_are_refused(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        _init(*words, "--folder", str(tmp_path))
    assert not list(tmp_path.iterdir())
