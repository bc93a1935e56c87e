from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipeline.config.reading import load
from pipeline.errors import ConfigError
from pipeline.store.store import Store
from tests.support.command_line import app


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
        str(tmp_path / "s"),
        "--folder",
        str(tmp_path),
    )
    assert sorted(said.splitlines()) == sorted(str(path) for path in tmp_path.rglob("*") if path.is_file())
    assert Store(tmp_path / "s").images() == []  # it is a store
    config = load(tmp_path / "images.yaml")
    spec = config.image("mine")
    assert str(spec.base) == "docker.io/library/debian:12"
    assert str(config.registry.repository("mine")) == "127.0.0.1:5000/a/mine"
    assert config.store.root == tmp_path / "s"
    assert spec.dockerfile is not None
    assert "ARG BASE_IMAGE=docker.io/library/debian:12\nFROM ${BASE_IMAGE}\n" in spec.dockerfile.read_text()
    compile((spec.dockerfile.parent / "train.py").read_text(), "train.py", "exec")
    workflow = yaml.safe_load((tmp_path / ".github/workflows/images.yml").read_text())
    assert workflow["permissions"] == {}
    assert workflow["jobs"]["images"]["runs-on"].startswith("${{")
    uses = [step["uses"] for step in workflow["jobs"]["images"]["steps"] if "uses" in step]
    unpinned = [each for each in uses if len(each.rpartition("@")[2]) != 40]
    assert set(unpinned) <= {"OWNER/sqshpipe@v1"}, "pinned by commit, but for a placeholder"


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _direct_url(url: str, **more: object) -> str:
    return json.dumps({"url": url, **more})


def _git(url: str, commit: str = COMMIT) -> str:
    return _direct_url(url, vcs_info={"vcs": "git", "commit_id": commit})


@pytest.mark.parametrize(
    ("recorded", "wanted"),
    [
        (_git("https://me:secret@github.com/team/sqshpipe.git"), f"team/sqshpipe@{COMMIT}"),
        (_git("ssh://git@github.com/team/a.b"), f"team/a.b@{COMMIT}"),
        # The same path at GitHub would be a stranger's.
        (_git("https://git.example.com/team/sqshpipe.git"), "OWNER/sqshpipe@v1"),
        (_git("https://github.com.example.com/team/sqshpipe.git"), "OWNER/sqshpipe@v1"),
        (_git("https://github.com/team/sqshpipe/more"), "OWNER/sqshpipe@v1"),
        (_git("https://github.com/team/sq\nrun: id"), "OWNER/sqshpipe@v1"),
        (_git("https://github.com/team/sqshpipe", "main"), "OWNER/sqshpipe@v1"),
        (_direct_url("https://github.com/team/sqshpipe/a.whl", archive_info={}), "OWNER/sqshpipe@v1"),
        (_direct_url("file:///home/me/sqshpipe", dir_info={}), "OWNER/sqshpipe@v1"),
        (None, "OWNER/sqshpipe@v1"),
    ],
)
def test_the_workflow_uses_the_action_of_what_is_installed_here(
    recorded: str | None, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Installed:
        def read_text(self, name: str) -> str | None:
            return recorded if name == "direct_url.json" else None

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Installed())
    result = CliRunner().invoke(app, ["init", "mine", "--folder", str(tmp_path)])
    assert result.exit_code == 0
    workflow = yaml.safe_load((tmp_path / ".github/workflows/images.yml").read_text())
    steps = workflow["jobs"]["images"]["steps"]
    uses = [step["uses"] for step in steps if step.get("with", {}).get("command")]
    assert uses == [wanted, wanted]
    assert not [step for step in steps if "pip install" in step.get("run", "")]
    assert ("OWNER/sqshpipe@v1" in result.stderr) == (wanted == "OWNER/sqshpipe@v1")


ECR = "123456789012.dkr.ecr.eu-central-1.amazonaws.com"


@pytest.mark.parametrize(
    ("registry", "scanner"),
    [
        (ECR, "auto"),
        (f"{ECR}/team", "auto"),
        (f"{ECR.upper()}/team", "auto"),
        ("123456789012.dkr-ecr.eu-central-1.on.aws/team", "auto"),
        ("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com", "auto"),
        ("registry.example.com/team", "none"),
        (f"{ECR}.example.com/team", "none"),
        ("", "none"),
    ],
)
def test_what_is_pushed_to_ecr_is_scanned_there(registry: str, scanner: str, tmp_path: Path) -> None:
    _init("mine", *(["--registry", registry] if registry else []), "--folder", str(tmp_path))
    config = load(tmp_path / "images.yaml")
    assert config.image("mine").scan.scanner == scanner
    assert (config.registry.ecr is not None) == (scanner == "auto")


def test_the_store_that_is_named_is_created_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A default, and a folder on a file system that this machine does not mount, are only mentioned."""
    for number, root in enumerate(
        (tmp_path / "containers", tmp_path / "fsx" / "containers", tmp_path / "file")
    ):
        (tmp_path / "file").write_text("")
        result = CliRunner().invoke(
            app, ["init", "--folder", str(tmp_path / str(number)), "--store", str(root)]
        )
        assert result.exit_code == 0
        assert (root / "blobs").exists() == (number == 0)
        assert (f"sqshpipe store create {root}" in result.stderr) == (number > 0)
    monkeypatch.setattr("pipeline.cli.init._STORE", tmp_path / "default")
    result = CliRunner().invoke(app, ["init", "--folder", str(tmp_path / "3")])
    assert f"sqshpipe store create {tmp_path / 'default'}" in result.stderr
    assert not (tmp_path / "default").exists()


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
