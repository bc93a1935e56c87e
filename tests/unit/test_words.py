"""Documents and comments are in plain English: words that readers had to read twice do not come back."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AVOIDED = re.compile(
    r"\b([Tt]old|[Uu]ntold|[Tt]ells?|[Tt]elling|[Mm]end(s|ed|ing)?|[Ll]ikewise|words? of"
    r"|gone on|goes on|go on|going on|went on|is none|are none|as (it|they) stands? now)\b"
)
# Folders in which not one is left. The others may have so many in all: block words of squashfs, for instance.
FOLDERS = (
    *("aws", "bases", "batch", "cli", "config", "docker", "github", "image", "notify", "oci", "plan"),
    *("registry", "report", "scan", "slurm", "system"),
)
REST_AT_MOST = 5
# Written from results or from the code: their words are those of the programs that write them.
GENERATED = ("docs/reference/", "docs/fault-matrix.md", "docs/benchmarks.md")
# A method of Python's files, names of files in examples.
ALLOWED = re.compile(r"\.tell\(\)|bin/tell\b")


def _hits(paths: Iterable[Path]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in paths
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if AVOIDED.search(ALLOWED.sub("", line))
    ]


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


def test_comments_and_docstrings_of_the_rest_have_few() -> None:
    """Tests, demo and benchmarks: names in their code may be short, their sentences are read by people."""
    modules = [path for folder in ("tests", "demo", "bench") for path in (ROOT / folder).rglob("*.py")]
    assert len(modules) > 300
    hits = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in modules
        if path != Path(__file__)
        for text in _prose(path)
        for line in text.splitlines()
        if AVOIDED.search(ALLOWED.sub("", line))
    ]
    assert len(hits) <= 10, hits


def _prose(path: Path) -> Iterable[str]:
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and token.string.endswith('"""')):
            yield token.string


@pytest.mark.parametrize("line", ["What is told here", "it Mends the file", "the run goes on"])
def test_they_are_found(line: str) -> None:
    assert AVOIDED.search(line)
