from pipeline.report import text


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
