"""Which tags of a base are newer: patterns such as ``YY.MM-py3`` say what counts, and in which order.

In a pattern YYYY, YY, MM and DD stand for that many digits, N for a number of any length; all else is taken
as it is, capitals of other words too. Tags are compared by these numbers from left to right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_CAPITALS = re.compile(r"([A-Z]+)")
_TOKENS = re.compile(r"(?:YYYY|YY|MM|DD|N)+")
_TOKEN = re.compile(r"YYYY|YY|MM|DD|N")
_DIGITS = {
    "YYYY": "([0-9]{4})",
    "YY": "([0-9]{2})",
    "MM": "(0[1-9]|1[0-2])",
    "DD": "([0-3][0-9])",
    "N": "([0-9]{1,9})",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """A pattern of tags, ready to match."""

    text: str
    expression: re.Pattern[str]

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Raises ValueError when there is nothing in ``text`` by which tags could be ordered."""
        pieces: list[str] = []
        for part in _CAPITALS.split(text):
            known = _TOKENS.fullmatch(part)
            pieces += [_DIGITS[token] for token in _TOKEN.findall(part)] if known else [re.escape(part)]
        if not set(pieces) & set(_DIGITS.values()):
            raise ValueError(f"{text!r} has none of YYYY, YY, MM, DD and N, such as YY.MM-py3")
        return cls(text=text, expression=re.compile("".join(pieces)))

    def order(self, tag: str) -> tuple[int, ...] | None:
        """The numbers in ``tag``, by which tags are compared; None when ``tag`` does not match."""
        match = self.expression.fullmatch(tag)
        return tuple(int(number) for number in match.groups()) if match else None

    def newer(self, current: str, tags: Iterable[str]) -> str | None:
        """The newest of the matching ``tags``; None when it is not newer than ``current``.

        When ``current`` itself does not match, the newest one always counts as newer.
        """
        fitting = [(order, tag) for tag in tags if (order := self.order(tag)) is not None]
        if not fitting:
            return None
        newest, tag = max(fitting)
        held = self.order(current)
        return tag if tag != current and (held is None or newest > held) else None
