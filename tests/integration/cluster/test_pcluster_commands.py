"""The commands of pcluster in documents, asked of ParallelCluster itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.integration.cluster import test_bootstrap
from tests.unit.test_aws_commands import ROOT, commands

parallelcluster = test_bootstrap.parallelcluster
PAGE = ROOT / "docs" / "how-to" / "parallelcluster.md"


def wrong(python: Path, words: list[str]) -> str:
    """What pcluster does not know about a command; empty if it knows all."""
    argv = [str(python.with_name("pcluster")), words[0], "--help"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env={"PYTHONWARNINGS": "ignore"})
    given = {word for word in words[1:] if word.startswith("-")}
    unknown = {option for option in given if f" {option}" not in done.stdout.replace("[", " ")}
    return "" if done.returncode == 0 and not unknown else f"{words}: {unknown or done.stderr[-200:]}"


def test_pcluster_knows_them(parallelcluster: Path) -> None:
    found = {tuple(each) for each in commands(PAGE.read_text(encoding="utf-8"), "pcluster")}
    assert len({verb for verb, *_ in found}) >= 7
    assert [said for each in sorted(found) if (said := wrong(parallelcluster, list(each)))] == []


@pytest.mark.parametrize("words", [["create-clusters", "-n", "x"], ["create-cluster", "--wait"]])
def test_a_wrong_one_is_seen(parallelcluster: Path, words: list[str]) -> None:
    assert wrong(parallelcluster, words)
