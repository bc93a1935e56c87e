"""README.ko.md says what README.md says: the same sections, commands, links, tables and figures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LANGUAGES = ("README.md", "README.ko.md")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_FIGURES = re.compile(r"<!-- figures: readme(?: ko)? -->\n.*?<!-- end -->", re.DOTALL)

Section = dict[str, object]


def _sections(text: str) -> Iterator[Section]:
    """What a translation leaves as it is, section by section."""
    text = _FIGURES.sub("FIGURES", text)
    blocks = [_commands(block) for block in _FENCE.findall(text)]
    for part in re.split(r"^(?=#+ )", _FENCE.sub("BLOCK", text), flags=re.MULTILINE):
        if part.strip():
            yield {
                "level": part.index(" "),
                "blocks": [blocks.pop(0) for _ in range(part.count("BLOCK"))],
                "figures": part.count("FIGURES"),
                "items": len(re.findall(r"^- ", part, re.MULTILINE)),
                "rows": len(re.findall(r"^\|", part, re.MULTILINE)),
                "links": [link for link in re.findall(r"\]\(([^)]+)\)", part) if link not in LANGUAGES],
                "code": sorted(" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`", part)),
            }


def _commands(block: str) -> list[str]:
    """Lines without their comments; a drawing has words in it."""
    if not block.startswith("```sh"):
        return ["a drawing"]
    return [re.sub(r"\s+# .*", "", line) for line in block.splitlines()]


def _both() -> tuple[list[Section], list[Section]]:
    english, korean = ((ROOT / name).read_text(encoding="utf-8") for name in LANGUAGES)
    return list(_sections(english)), list(_sections(korean))


def test_the_korean_readme_has_the_structure_of_the_english_one() -> None:
    english, korean = _both()
    assert len(english) >= 6
    assert sum(len(each["blocks"]) for each in english) >= 3  # type: ignore[arg-type]
    for one, other in zip(english, korean, strict=True):
        assert one == other


@pytest.mark.parametrize(
    ("there", "instead"),
    [
        ("## Every day", "Every day"),
        ("make test ", "make tests "),
        ("(docs/how-to/fsx.md)", "(docs/how-to/pyxis.md)"),
        ("| check this machine | `sqshpipe doctor` |\n", ""),
        ("`sqshpipe doctor`", "`sqshpipe plan`"),
        ("<!-- figures: readme -->", ""),
    ],
)
def test_a_difference_is_seen(there: str, instead: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert there in text
    assert list(_sections(text)) != list(_sections(text.replace(there, instead)))


def test_each_leads_to_the_other() -> None:
    assert "](README.ko.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "](README.md)" in (ROOT / "README.ko.md").read_text(encoding="utf-8")
