"""images.yaml as checked out has an account that belongs to nobody: whoever runs it is asked to edit it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.store.releases import new_store

ROOT = Path(__file__).parents[3]
# Nothing listens on port 1: the run ends at its first stage.
ENTRY = "version: 1\nimages:\n  mine: {base: '127.0.0.1:1/base:1', scan: {scanner: none}}\n"


def _release(folder: Path, registry: str, *more: str) -> subprocess.CompletedProcess[str]:
    (folder / "images.yaml").write_text(f"{ENTRY}registry: {registry}\n")
    new_store(folder / "store")
    argv = [sys.executable, "-m", "pipeline", "release", "mine", "--tag", "v1.0", "--store", "store", *more]
    return subprocess.run(
        argv,
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("account", ["123456789012", "111122223333"])
def test_an_example_account_is_named_before_anything_fails(tmp_path: Path, account: str) -> None:
    done = _release(tmp_path, f'{{ecr: {{account: "{account}", region: us-east-1}}}}')
    assert done.returncode == 4
    warned, _, failed = done.stderr.partition("sqshpipe: ")
    assert "images.yaml has placeholders" in warned
    assert "127.0.0.1:1" in failed


def test_a_registry_of_ones_own_is_no_placeholder(tmp_path: Path) -> None:
    for registry, more in (
        ("{url: registry.example.com/team}", ()),
        ('{ecr: {account: "210987654321", region: us-east-1}}', ()),
        ('{ecr: {account: "123456789012", region: us-east-1}}', ("--registry", "registry.example.com/team")),
    ):
        done = _release(tmp_path, registry, *more)
        assert done.returncode == 4, done.stderr
        assert "placeholders" not in done.stderr
