"""How people write times and sizes, in files and on the command line: ``90m``, ``50G``."""

from __future__ import annotations

import re
from datetime import timedelta

from pipeline.errors import ConfigError

LONGEST = timedelta(days=36500)
"""A longer time than this is a mistake; the calendar ends in the year 9999."""

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_duration(text: str, *, zero: bool = False) -> timedelta:
    """``90m``, ``12h``, ``30d`` or ``2w``, at most `LONGEST`; with `zero` also ``0``. Raises ConfigError."""
    if zero and re.fullmatch(r"0+[smhdw]?", text):
        return timedelta()
    match = re.fullmatch(r"([1-9][0-9]{0,9})([smhdw])", text)
    if match is None:
        raise ConfigError(f"{text!r} is not a time", hint="write a time such as 90m, 12h, 30d or 2w")
    seconds = int(match[1]) * _SECONDS[match[2]]
    if seconds > LONGEST.total_seconds():
        raise ConfigError(f"{text} is too long a time", hint=f"write at most {LONGEST.days}d")
    return timedelta(seconds=seconds)


def parse_size(text: str) -> int:
    """``50G``, ``512M`` or a number, in bytes; K, M, G and T are powers of 1024. Raises ConfigError."""
    match = re.fullmatch(r"([1-9][0-9]{0,14})([KMGT]?)(?:iB)?", text)
    if match is None:
        raise ConfigError(f"{text!r} is not a size", hint="write a size such as 50G or 512M")
    return int(match[1]) << 10 * _POWERS[match[2]]


def duration_text(time: timedelta) -> str:
    """`time` (whole seconds, above 0) in the largest exact unit up to days: ``90m``."""
    seconds = int(time.total_seconds())
    unit = next(unit for unit in "dhms" if seconds % _SECONDS[unit] == 0)
    return f"{seconds // _SECONDS[unit]}{unit}"


def size_text(amount: int) -> str:
    """`amount` bytes in the largest exact unit: ``128K``."""
    unit = next(unit for unit in ("T", "G", "M", "K", "") if amount % (1 << 10 * _POWERS[unit]) == 0)
    return f"{amount >> 10 * _POWERS[unit]}{unit}"
