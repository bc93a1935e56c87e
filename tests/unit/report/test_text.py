from random import Random

import pytest

from pipeline.report import text
from pipeline.report.text import cells, folded


def test_what_a_record_says_can_neither_hide_nor_turn_the_line_around() -> None:
    assert text.shown("a\u202eb\x1b[31m\n") == "a\\u202eb\\x1b[31m\\n"
    assert text.shown("한국어 图") == "한국어 图"
    assert text.shown("x" * 500) == "x" * 400 + "…"
    assert text.shown("\ud800") == "\\ud800"


def test_sizes_grow_by_their_unit() -> None:
    assert text.growth(1000, 1500) == "+500 B (+50.0%)"
    assert text.growth(2048, 0) == "-2.0 kB (-100.0%)"
    assert text.growth(0, 10) == "+10 B"
    assert text.growth(5, 5) == "same size"


def test_wide_characters_take_two_columns() -> None:
    assert text.cells("한글a") == 5
    assert text.cells("e\u0301") == 1
    assert text.padded("한", 4) == "한  "


def test_times_of_a_record_are_shown_to_the_minute_and_anything_else_as_it_stands() -> None:
    assert text.clock("2026-10-03T09:41:00Z") == "2026-10-03 09:41"
    assert text.clock("2026-10-03T09:41:00+02:00") == "2026-10-03T09:41:00+02:00"
    assert text.clock("\x1b") == "\\x1b"


_WORDS = (
    "a",
    "bb",
    "::error::FAKE",
    "한국어" * 12,
    "e\u0301" * 40,
    "",
    "<" + "x" * 90,
    "x" * 50 + "::" + "y" * 50,
)
_COPIED = (
    "/fsx/" + "q" * 90,
    "sha256:" + "0" * 64,
    "registry.example.com:5000/" + "r" * 60 + "@sha256:" + "1" * 64,
)


@pytest.mark.parametrize("seed", range(20))
def test_a_folded_line_leaves_the_terminal_nothing_to_break(seed: int) -> None:
    """What the terminal breaks begins where our lines begin, and others wrote it."""
    random = Random(seed)
    for _ in range(300):
        words = random.choices(_WORDS + _COPIED, k=random.randint(1, 8))
        width, indent = random.randint(3, 120), random.choice((4, 9, 12))
        first, *rest = folded(" ".join(words), width, indent)
        assert "".join("".join((first, *rest)).split()) == "".join(words), "nothing is lost"
        for line in (first, *rest):
            assert cells(line) <= max(width, 3) or any(word in line for word in _COPIED)
        for line in rest:
            assert line.startswith(" " * min(indent, width // 3))
            assert width < 12 or not line.startswith("::")
        for word in _COPIED:
            assert (word in words) == any(word in line for line in (first, *rest)), "copied as a whole"
