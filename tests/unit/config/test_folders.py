"""Where layer packs and scratch are: the environment, images.yaml, the defaults."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.folders import cache_folder, cache_from, scratch_folder, scratch_from
from pipeline.config.reading import load

NAMES = ("SQSHPIPE_SCRATCH", "SQSHPIPE_CACHE", "TMPDIR", "XDG_CACHE_HOME")


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_the_defaults_follow_the_environment(tmp_path: Path) -> None:
    assert scratch_from({}) == Path("/var/tmp")
    assert cache_from({}) == tmp_path / ".cache" / "sqshpipe"
    assert scratch_from({"TMPDIR": "/somewhere"}) == Path("/somewhere")
    assert scratch_from({"TMPDIR": "/somewhere", "SQSHPIPE_SCRATCH": "/local"}) == Path("/local")
    assert cache_from({"XDG_CACHE_HOME": "/x"}) == Path("/x/sqshpipe")
    assert cache_from({"SQSHPIPE_CACHE": "~/packs"}) == tmp_path / "packs"


def test_every_verb_uses_the_folders_of_images_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "images.yaml"
    config.write_text(
        "version: 1\nregistry: {url: registry.example.com/team}\n"
        "cache: packs\nscratch: ~/scratch\nimages: {demo: {base: nvcr.io/nvidia/pytorch:1}}\n"
    )
    settings = load(config)
    assert (settings.cache, settings.scratch) == (tmp_path / "packs", tmp_path / "scratch")
    assert (cache_folder(config), scratch_folder(config)) == (settings.cache, settings.scratch)
    monkeypatch.setenv("SQSHPIPE_CACHE", "/cache")
    assert cache_folder(config) == load(config).cache == Path("/cache")
    assert cache_folder(tmp_path / "absent.yaml") == Path("/cache")
