"""`list` and `show`: what people read, at any width; scripts take --json or what no terminal gets."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli.tables import facts, listed
from pipeline.report.text import cells
from pipeline.store.store import ReleaseRow
from tests.support.command_line import app
from tests.support.store.showcase import hostile, showcase


def _run(*words: str) -> str:
    result = CliRunner().invoke(app, ["-q", *words])
    if result.exception:
        raise result.exception
    return result.stdout


def _listed(tmp_path: Path) -> list[ReleaseRow]:
    store = showcase(tmp_path / "store", tmp_path / "work")
    return [line for name in store.images() for line in store.listed(name)]


@pytest.mark.parametrize("columns", [200, 95, 80, 60, 40])
def test_a_table_fits_its_terminal(columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = _listed(tmp_path)
    whole = listed(lines)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = listed(lines)
    assert max(map(cells, shown)) <= columns
    assert "megatron-training:v1.4" in "\n".join(shown)
    assert "stable" in "\n".join(shown)
    assert ("SHA256" in shown[0]) == (columns >= 200)
    assert whole[0].split() == ["RELEASE", "PLATFORM", "SIZE", "CREATED", "SHA256", "CHANNELS", "STATE"]
    assert len(shown) == len(whole) if columns >= 80 else len(shown) > len(whole)


def test_a_platform_that_differs_is_never_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = _listed(tmp_path)
    lines[0] = lines[0]._replace(platform="linux/arm64")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    assert "linux/arm64" in "\n".join(listed(lines))


def test_show_says_in_words_what_the_record_holds(tmp_path: Path) -> None:
    store = showcase(tmp_path / "store", tmp_path / "work")
    said = _run("show", "megatron-training:stable", "--store", str(store.root)).splitlines()
    facts = {line[:12].strip(): line[12:] for line in said if line[:12].strip()}
    release = store.resolve("megatron-training:v1.4")
    assert facts["release"] == "megatron-training:v1.4"
    assert facts["channels"] == "stable"
    assert facts["path"] == str(release.link)
    assert facts["size"] == "1.1 MB (1,126,400 bytes)"
    assert facts["sha256"] == release.sha256
    assert facts["created"] == "2026-09-03 09:30 UTC"
    assert facts["base"] == "nvcr.io/nvidia/pytorch:24.02-py3"
    assert facts["layers"] == "5, 7.3 GB compressed"
    assert facts["converter"] == "native, zstd_level 3"
    assert facts["scan"] == "passed: 2 high, 41 medium; ecr enhanced; 2026-10-03 09:41"
    assert facts["waived"].startswith("CVE-2024-0001 in imagemagick until 2026-12-31: not reachable")
    yanked = _run("show", "megatron-training:v1.2", "--store", str(store.root))
    assert "state       yanked: NCCL hangs on 16 nodes\n" in yanked


def test_facts_are_broken_at_words_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = showcase(tmp_path / "store", tmp_path / "work")
    release = store.resolve("megatron-training:v1.4")
    whole = list(facts(release, None, []))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    narrow = list(facts(release, None, []))
    assert len(narrow) > len(whole)
    assert [line for line in narrow if cells(line) > 60 and " " in line[12:].strip()] == []
    assert "".join(" ".join(narrow).split()) == "".join(" ".join(whole).split()), "nothing is lost"


def test_show_prints_nothing_that_moves_the_cursor(tmp_path: Path) -> None:
    store = hostile(tmp_path / "store", tmp_path / "work")
    for version in ("v1.0", "v1.1"):
        said = _run("show", f"demo:{version}", "--store", str(store.root))
        assert "\x1b" not in said
        assert "\u202e" not in said
        assert "한국어" in said


def test_each_table_has_a_heading_and_fits_80_columns(tmp_path: Path) -> None:
    store = showcase(tmp_path / "store", tmp_path / "work")
    for words, heading in (
        (("store", "usage"), ["RELEASE", "SIZE", "ONLY", "HERE", "STATE"]),
        (("store", "lease", "list"), ["LEASE", "RELEASE", "SHA256", "HOLDER"]),
        (("history", "pytorch"), ["WHEN", "WHAT", "VERSION", "CHANNEL", "BY", "REASON"]),
    ):
        said = _run(*words, "--store", str(store.root)).splitlines()
        assert said[0].split() == heading
        assert max(map(cells, said)) <= 80, words
