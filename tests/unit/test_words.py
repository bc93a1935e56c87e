"""Documents, comments and names are in plain English: words that had to be read twice do not come back."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AVOIDED = re.compile(
    r"\b([Tt]old|[Uu]ntold|[Tt]ells?|[Tt]elling|[Mm]end(s|ed|ing)?|[Ll]ikewise|words? of"
    r"|gone on|goes on|go on|going on|went on|is none|are none|as (it|they) stands? now)\b"
)
# Folders in which not one is left. The others may have so many in all: the block words of squashfs.
FOLDERS = (
    *("aws", "bases", "batch", "cli", "config", "docker", "github", "image", "notify", "oci", "plan"),
    *("registry", "report", "scan", "slurm", "system"),
)
REST_AT_MOST = 3
# Written from results or from the code: their words are those of the programs that write them.
GENERATED = ("docs/reference/", "docs/fault-matrix.md", "docs/benchmarks.md")
# A method of Python's files, names of files in examples.
ALLOWED = re.compile(r"\.tell\(\)|bin/tell\b")


def _hits(paths: Iterable[Path]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in paths
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if AVOIDED.search(_words(line))
    ]


def _words(line: str) -> str:
    """The line with its names split into words."""
    return ALLOWED.sub("", line).replace("_", " ")


def _modules(*folders: str) -> set[Path]:
    return {path for folder in folders for path in (ROOT / "pipeline" / folder).rglob("*.py")}


def test_no_document_has_them() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    written = [page for page in pages if not str(page.relative_to(ROOT)).startswith(GENERATED)]
    assert len(written) > 30
    assert _hits(written) == []


def test_no_module_of_these_folders_has_them() -> None:
    modules = _modules(*FOLDERS)
    assert len(modules) > 150
    assert _hits(modules) == []


def test_the_other_modules_have_no_more_than_before() -> None:
    found = _hits(_modules(".") - _modules(*FOLDERS))
    assert len(found) <= REST_AT_MOST, found


def test_tests_demo_and_benchmarks_have_almost_none() -> None:
    modules = {path for folder in ("tests", "demo", "bench") for path in (ROOT / folder).rglob("*.py")}
    assert len(modules) > 300
    hits = _hits(modules - {Path(__file__)})
    assert len(hits) <= 2, hits


@pytest.mark.parametrize(
    "line", ["What is told here", "it Mends the file", "the run goes on", "def test_damage_is_told_at_once()"]
)
def test_they_are_found(line: str) -> None:
    assert AVOIDED.search(_words(line))
