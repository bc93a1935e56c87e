"""The commands of pcluster in documents, asked of ParallelCluster itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.integration.cluster import test_bootstrap
from tests.unit.test_aws_commands import ROOT, commands

parallelcluster = test_bootstrap.parallelcluster
PAGE = ROOT / "docs" / "how-to" / "parallelcluster.md"


HELP = """
import sys
from pcluster.cli.entrypoint import main
for verb in sys.argv[1:]:
    print("VERB", verb, flush=True)
    sys.argv = ["pcluster", verb, "--help"]
    try:
        main()
    except SystemExit:
        pass
"""


def wrong(python: Path, calls: list[list[str]]) -> list[str]:
    """What pcluster does not know of the commands."""
    verbs = sorted({verb for verb, *_ in calls})
    argv = [str(python), "-W", "ignore", "-c", HELP, *verbs]
    said = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120).stdout
    helps = dict(part.split("\n", 1) for part in said.split("VERB ")[1:])
    return [
        f"{verb} {word}"
        for verb, *words in calls
        for word in ("", *words)
        if f"usage: pcluster {verb} " not in helps[verb]
        or (word.startswith("-") and f" {word}" not in helps[verb].replace("[", " "))
    ]


def test_pcluster_knows_them(parallelcluster: Path) -> None:
    found = list(commands(PAGE.read_text(encoding="utf-8"), "pcluster"))
    assert len({verb for verb, *_ in found}) >= 7
    assert wrong(parallelcluster, found) == []
    assert wrong(parallelcluster, [["create-clusters", "-n", "x"]])
    assert wrong(parallelcluster, [["create-cluster", "-n", "x", "--wait"]]) == ["create-cluster --wait"]
