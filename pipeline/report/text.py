"""Words for people. Whatever a record says is shown as text that can neither move, hide nor reorder its
surroundings.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime

from pipeline.text import human_bytes, shown

_NEVER = "1970"
_COPIED = re.compile(r"(?:[\w./@+=,-]|:(?!:))+", re.ASCII)  # the words that paths, digests and references are
_ISO = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(?::\d\d(?:\.\d+)?)?(?:Z|\+00:00)\Z", re.ASCII)


def growth(before: int, after: int) -> str:
    """How much more or less, with its sign, and as a share where there is something to compare with."""
    if before == after:
        return "same size"
    step = after - before
    share = f" ({step / before:+.1%})" if before else ""
    return f"{'+' if step > 0 else '-'}{human_bytes(abs(step))}{share}"


def when(moment: datetime) -> str:
    """A time in UTC, to the minute; a hyphen for the beginning of 1970, which means unknown."""
    return "-" if f"{moment:%Y}" == _NEVER else f"{moment:%Y-%m-%d %H:%M}"


def clock(value: object) -> str:
    """A time in ISO 8601 as `when` shows it; anything else unchanged."""
    match = _ISO.match(str(value))
    return f"{match[1]} {match[2]}" if match else shown(value)


def cells(text: str) -> int:
    """How many columns of a terminal `text` takes: wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def folded(text: str, width: int, indent: int) -> list[str]:
    """`text` broken at spaces to `width` columns; each line but the first begins with `indent` spaces.

    No line is left to the terminal to break, since what others wrote would stand where our lines begin. The
    exception is what people copy as a whole: a path, a digest, a reference.
    """
    indent = min(indent, width // 3)
    lines, line = [], ""
    for word in re.findall(r" *[^ ]+", text):
        rest, whole = word, _COPIED.fullmatch(word.strip())
        if len(line) > indent and cells(line + word) > width:
            lines.append(line)
            line, rest = " " * indent, word.lstrip()
        while not whole and cells(line + rest) > width:
            room = _fitting(rest, width - cells(line))
            lines.append(line + rest[:room])
            line, rest = " " * indent, rest[room:]
        line += rest
    return [*lines, line]


def _fitting(text: str, width: int) -> int:
    """How many characters of `text`, at least one, fit into `width` columns."""
    count, used = 0, 0
    for char in text:
        used += cells(char)
        if count and used > width:
            break
        count += 1
    return count


def padded(text: str, columns: int) -> str:
    """`text` filled up to that many columns of a terminal."""
    return text + " " * max(0, columns - cells(text))
