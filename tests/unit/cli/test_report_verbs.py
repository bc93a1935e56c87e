from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.errors import ConfigError, PublishError, ToolError
from tests.support.command_line import app
from tests.support.store.showcase import attach_sbom, hostile, showcase


def _run(*words: str) -> str:
    result = CliRunner().invoke(app, ["-q", *words])
    if result.exception:
        raise result.exception
    return result.stdout


def test_diff_shows_base_size_and_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    store = showcase(tmp_path / "store", tmp_path / "work")
    said = _run(
        "diff", "megatron-training:v1.2", "megatron-training:stable", "--files", "--store", str(store.root)
    )
    assert said.startswith("megatron-training:v1.2 → megatron-training:v1.4\n")
    assert "nvcr.io/nvidia/pytorch:23.12-py3  → nvcr.io/nvidia/pytorch:24.02-py3" in said
    assert "2 of 5 layers are the same, 4.1 GB compressed\n" in said
    assert "layer 3  2.9 GB, sha256:" in said
    assert "4 packages, from the images\n" in said
    assert "torch (python)    2.2.0" in said
    assert "/app" in said


def test_a_narrow_terminal_gets_short_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    store = showcase(tmp_path / "store", tmp_path / "work")
    said = _run("diff", "megatron-training:v1.2", "megatron-training:stable", "--store", str(store.root))
    assert max(len(line) for line in said.splitlines()) <= 60


def test_diff_for_machines_and_against_itself(tmp_path: Path) -> None:
    store = showcase(tmp_path / "store", tmp_path / "work")
    found = json.loads(_run("diff", "pytorch:24.01", "pytorch:24.02", "--json", "--store", str(store.root)))
    assert {"what": "libc6 (debian)", "before": "2.35-0", "after": "2.35-1"} in found["packages"]
    assert "nothing changed" in _run("diff", "pytorch", "pytorch:24.03", "--store", str(store.root))


def test_the_sboms_win_where_both_have_one_by_the_same_tool(tmp_path: Path) -> None:
    store = showcase(tmp_path / "store", tmp_path / "work")
    words = ("diff", "pytorch:24.01", "pytorch:24.02", "--json", "--store", str(store.root))
    attach_sbom(store, "pytorch", "24.01", {"golang.org/x/net": "v0.1", "same": "v1"})
    assert json.loads(_run(*words))["packages_from"] == "image", "the other one has none"
    other = attach_sbom(store, "pytorch", "24.02", {"golang.org/x/net": "v0.2", "same": "v1"})
    found = json.loads(_run(*words))
    assert found["packages_from"] == "SBOM"
    assert found["packages"] == [{"what": "golang.org/x/net (golang)", "before": "v0.1", "after": "v0.2"}]
    assert "1 package, from the SBOMs\n" in _run(*(word for word in words if word != "--json"))
    assert json.loads(_run(*words, "--no-packages"))["packages"] is None
    attach_sbom(store, "pytorch", "24.02", {"golang.org/x/net": "v0.2"}, tool="trivy")
    assert json.loads(_run(*words))["packages_from"] == "image", "another tool names other things"
    other.write_text("{")
    broken = json.loads(_run(*words))
    assert broken["packages_from"] == "image"
    assert "sbom.cdx.json is not JSON" in broken["note"]


def test_sboms_describe_a_release_whose_bytes_are_gone(tmp_path: Path) -> None:
    store = showcase(tmp_path / "store", tmp_path / "work")
    attach_sbom(store, "pytorch", "24.01", {"a": "v1"})
    attach_sbom(store, "pytorch", "24.02", {"a": "v2"})
    release = store.release("pytorch", "24.01")
    assert release is not None
    release.path.unlink()
    words = ("diff", "pytorch:24.01", "pytorch:24.02", "--json", "--store", str(store.root))
    found = json.loads(_run(*words))
    assert (found["packages"], found["note"]) == ([{"what": "a (golang)", "before": "v1", "after": "v2"}], "")
    walked = json.loads(_run(*words, "--files"))
    assert walked["files"] is None
    assert "pytorch:24.01 was not read: " in walked["note"]


def test_diff_prints_nothing_that_moves_the_cursor(tmp_path: Path) -> None:
    store = hostile(tmp_path / "store", tmp_path / "work")
    said = _run("diff", "demo:v1.0", "demo:v1.1", "--store", str(store.root))
    assert "\x1b" not in said
    assert "\u202e" not in said


def test_an_unknown_release_is_named(tmp_path: Path) -> None:
    store = showcase(tmp_path / "store", tmp_path / "work")
    with pytest.raises(ConfigError, match=r"pytorch:24\.09"):
        _run("diff", "pytorch:24.01", "pytorch:24.09", "--store", str(store.root))


def test_the_page_replaces_the_old_one_whole_or_not(tmp_path: Path) -> None:
    store = showcase(tmp_path / "store", tmp_path / "work")
    file = tmp_path / "out" / "page.html"
    with pytest.raises(ToolError, match="cannot write"):
        _run("report", "--store", str(store.root), "-o", str(file))
    file.parent.mkdir()
    file.write_text("old")
    assert _run("report", "--store", str(store.root), "-o", str(file)) == f"{file}\n"
    assert file.read_text().startswith("<!doctype html>")
    assert file.stat().st_mode & 0o777 == 0o644
    assert [each.name for each in file.parent.iterdir()] == ["page.html"]
    with pytest.raises(PublishError, match="no store at"):
        _run("report", "--store", str(tmp_path / "nowhere"), "-o", str(file))


def test_diff_shows_the_dockerfile_line_by_line(tmp_path: Path) -> None:
    store = showcase(tmp_path / "store", tmp_path / "work")
    words = ("diff", "megatron-training:v1.2", "megatron-training:v1.3", "--store", str(store.root))
    assert "Dockerfile\n  @@ -3,2 +3,3 @@\n" in _run(*words)
    found = json.loads(_run(*words, "--json"))
    assert found["dockerfile"][-1] == "+RUN pip install wandb==0.16.2"
    assert not [one for one in found["changes"] if one["what"] == "dockerfile"], "no hashes beside the lines"
