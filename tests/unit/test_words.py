"""Documents and comments are in plain English: words that readers had to read twice do not come back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AVOIDED = re.compile(
    r"\b([Tt]old|[Tt]ells?|[Tt]elling|[Mm]end(s|ed|ing)?|[Ll]ikewise"
    r"|gone on|goes on|go on|going on|is none|are none)\b"
)
FOLDERS = ("oci", "squashfs", "registry", "docker", "aws")
# Written from results or from the code: their words are those of the programs that write them.
GENERATED = ("docs/reference/", "docs/fault-matrix.md", "docs/benchmarks.md")
# A method of Python's files, names of files in examples.
ALLOWED = re.compile(r"\.tell\(\)|bin/tell\b|0005-auto-goes-on")


def _texts() -> dict[str, str]:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    modules = [path for folder in FOLDERS for path in (ROOT / "pipeline" / folder).rglob("*.py")]
    named = {str(path.relative_to(ROOT)): path for path in (*pages, *modules)}
    return {
        name: path.read_text(encoding="utf-8")
        for name, path in named.items()
        if not name.startswith(GENERATED)
    }


def test_no_document_or_docstring_has_them() -> None:
    found = [
        f"{name}:{number}: {line.strip()}"
        for name, text in _texts().items()
        for number, line in enumerate(text.splitlines(), 1)
        if AVOIDED.search(ALLOWED.sub("", line))
    ]
    assert len(_texts()) > 80
    assert found == []


@pytest.mark.parametrize("line", ["What is told here", "it Mends the file", "the run goes on"])
def test_they_are_found(line: str) -> None:
    assert AVOIDED.search(line)
