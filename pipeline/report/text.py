"""Words for people. Whatever a record says is shown as text that can neither move, hide nor reorder its
surroundings.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime

from pipeline.text import human_bytes, shown

_NEVER = "1970"
_ISO = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(?::\d\d(?:\.\d+)?)?(?:Z|\+00:00)\Z", re.ASCII)


def growth(before: int, after: int) -> str:
    """How much more or less, with its sign, and as a share where there is something to compare with."""
    if before == after:
        return "same size"
    step = after - before
    share = f" ({step / before:+.1%})" if before else ""
    return f"{'+' if step > 0 else '-'}{human_bytes(abs(step))}{share}"


def when(moment: datetime) -> str:
    """A time in UTC, to the minute; a hyphen for the beginning of 1970, which stands for unknown."""
    return "-" if f"{moment:%Y}" == _NEVER else f"{moment:%Y-%m-%d %H:%M}"


def clock(value: object) -> str:
    """A time in ISO 8601 as `when` shows it; anything else as it stands."""
    match = _ISO.match(str(value))
    return f"{match[1]} {match[2]}" if match else shown(value)


def cells(text: str) -> int:
    """How many columns of a terminal `text` takes: wide characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def padded(text: str, columns: int) -> str:
    """`text` filled up to that many columns of a terminal."""
    return text + " " * max(0, columns - cells(text))
