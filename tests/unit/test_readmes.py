"""A page in Korean says what its English one says: the same sections, commands, links, tables and figures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HAVE_TO_BE = (
    "README",
    "docs/tutorial",
    "docs/explanation/ecr",
    "docs/how-to/fsx",
    "docs/how-to/migrating",
    "docs/how-to/operations",
    "docs/how-to/parallelcluster",
    "docs/how-to/pyxis",
)
KOREAN = sorted(
    str(page.relative_to(ROOT)) for folder in ("", "docs/**/") for page in ROOT.glob(f"{folder}*.ko.md")
)
_FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_FIGURES = re.compile(r"<!-- figures: readme(?: ko)? -->\n.*?<!-- end -->", re.DOTALL)
_LINK = re.compile(r"\]\(([^)]+)\)")

Section = dict[str, object]


def _sections(text: str, page: str) -> Iterator[Section]:
    """What a translation leaves as it is, section by section; `page` is its path without .md or .ko.md."""
    languages = (f"{Path(page).name}.md", f"{Path(page).name}.ko.md")
    text = _FIGURES.sub("\0FIGURES", text)
    blocks = [_commands(block) for block in _FENCE.findall(text)]
    for part in re.split(r"^(?=#+ )", _FENCE.sub("\0BLOCK", text), flags=re.MULTILINE):
        if part.strip():
            yield {
                "level": part.index(" "),
                "blocks": [blocks.pop(0) for _ in range(part.count("\0BLOCK"))],
                "figures": part.count("\0FIGURES"),
                "items": len(re.findall(r"^(?:- |\d+\. )", part, re.MULTILINE)),
                "rows": len(re.findall(r"^\|", part, re.MULTILINE)),
                # a heading's anchor is in its language, and so is a page that there is in both
                "links": sorted(
                    link.partition("#")[0].replace(".ko.md", ".md")
                    for link in _LINK.findall(part)
                    if link not in languages
                ),
                "code": {" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`", part)},
            }


def _commands(block: str) -> list[str]:
    """Lines without their comments; a drawing has words in it."""
    if re.search("[─▶]", block):
        return ["a drawing"]
    return [re.sub(r"\s+# .*", "", line) for line in block.splitlines()]


def _both(page: str) -> tuple[list[Section], list[Section]]:
    english, korean = ((ROOT / f"{page}{end}").read_text(encoding="utf-8") for end in (".md", ".ko.md"))
    return list(_sections(english, page)), list(_sections(korean, page))


def test_the_pages_that_have_to_be_are_there() -> None:
    assert {f"{page}.ko.md" for page in HAVE_TO_BE} <= set(KOREAN)


@pytest.mark.parametrize("name", KOREAN)
def test_a_korean_page_has_the_structure_of_the_english_one(name: str) -> None:
    english, korean = _both(name.removesuffix(".ko.md"))
    for one, other in zip(english, korean, strict=True):
        assert one == other


@pytest.mark.parametrize("name", KOREAN)
def test_each_leads_to_the_other_and_korean_pages_to_korean_ones(name: str) -> None:
    page, english = ROOT / name, Path(name.replace(".ko.md", ".md"))
    text = page.read_text(encoding="utf-8")
    assert f"]({page.name})" in (ROOT / english).read_text(encoding="utf-8")
    assert f"]({english.name})" in text
    for link in _LINK.findall(text):
        path = link.partition("#")[0]
        if path.endswith(".md") and not path.endswith(".ko.md") and path != english.name:
            assert not (page.parent / path.replace(".md", ".ko.md")).exists(), link


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
    assert list(_sections(text, "README")) != list(_sections(text.replace(there, instead), "README"))
