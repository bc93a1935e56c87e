"""Which tags fit a pattern, and which of them is newer."""

from __future__ import annotations

import pytest

from pipeline.config.tag_pattern import Pattern

NGC = ["23.12-py3", "24.01-py3", "24.01-py3-igpu", "24.1-py3", "24.13-py3", "latest", "sha256-abc.sig"]

CASES = {
    "newer month": ("YY.MM-py3", "24.01-py3", [*NGC, "24.02-py3"], "24.02-py3"),
    "newer year": ("YY.MM-py3", "24.12-py3", [*NGC, "25.01-py3"], "25.01-py3"),
    "nothing newer": ("YY.MM-py3", "24.01-py3", NGC, None),
    "only older": ("YY.MM-py3", "24.05-py3", NGC, None),
    "other flavour": ("YY.MM-py3-igpu", "23.12-py3-igpu", NGC, "24.01-py3-igpu"),
    "numbers, not text": ("N.N.N", "1.9.0", ["1.10.0", "1.9.1", "v2.0.0", "1.11"], "1.10.0"),
    "with a letter before": ("vN.N", "v1.2", ["v1.3", "1.4"], "v1.3"),
    "dates": ("YYYYMMDD", "20250101", ["20250102", "20251301"], "20250102"),
    "other capitals": ("N-CUDA", "1-CUDA", ["2-CUDA", "3-CUDB"], "2-CUDA"),
    "dates with points": ("YYYY.MM.DD", "2025.01.01", ["2025.01.02", "2025.13.01"], "2025.01.02"),
    "current does not fit": ("YY.MM-py3", "latest", NGC, "24.01-py3"),
    "no tags": ("YY.MM-py3", "24.01-py3", [], None),
}


@pytest.mark.parametrize("case", CASES)
def test_newer(case: str) -> None:
    pattern, current, tags, expected = CASES[case]
    assert Pattern.parse(pattern).newer(current, tags) == expected


def test_a_pattern_must_order() -> None:
    with pytest.raises(ValueError, match=r"YY\.MM-py3"):
        Pattern.parse("latest")
