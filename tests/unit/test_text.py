from __future__ import annotations

import pytest

from pipeline.text import human_bytes, human_seconds


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (15_300_000_000, "15.3 GB"),
        (131_600_000, "132 MB"),
        (2_000_000_000_000, "2.0 TB"),
        (10**16, "10000.0 TB"),
    ],
)
def test_bytes_are_shown_in_decimal_units(amount: int, text: str) -> None:
    assert human_bytes(amount) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (12.3, "12 s"), (185, "3 m 05 s"), (3720, "1 h 02 m")]
)
def test_seconds_are_shown_in_the_unit_that_fits(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text
