"""Text for people: what others wrote, as one line that neither moves, hides nor reorders its surroundings,
and amounts.

Others are everybody but this program: registries, scanners, tools, Slurm, other users' leases and records,
file names, a fork's images.yaml. Whatever they wrote is one line here, whatever line breaks it holds.
"""

from __future__ import annotations

import re
import time
from datetime import datetime, timezone

_LONGEST = 400
_TAB = 8
_MARKUP = re.compile(r"[\\`*_\[\]<>|~!#&]")
_TERMINAL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")  # colours and cursor movements (ECMA-48, CSI)
_UNDECODED = range(0xDC80, 0xDD00)  # bytes of a file name that are not text (PEP 383)


def escaped(text: str) -> str:
    """`text` with control, direction and invisible characters escaped: it moves no cursor and starts no line.

    The result can always be encoded as UTF-8, and to escape it again changes nothing.
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(char: str) -> str:
    if char.isprintable():
        return char
    if ord(char) in _UNDECODED:
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()


def shown(value: object, *, longest: int = _LONGEST) -> str:
    """`value` as one line: escaped as by `escaped`, cut at `longest` characters."""
    text = value if isinstance(value, str) else str(value)
    return escaped(text[:longest]) + ("…" if len(text) > longest else "")


def said(line: str) -> str:
    """A line that a program printed: without its terminal's colours, tabs as spaces, the rest escaped."""
    return escaped(_TERMINAL.sub("", line).rstrip().expandtabs(_TAB))


def markdown(value: object, *, longest: int = _LONGEST) -> str:
    """`value` as one line of Markdown that is text alone: no link, picture, tag, table or mention."""
    return _MARKUP.sub(r"\\\g<0>", shown(value, longest=longest)).replace("@", "@\u200b")


def code(value: object, *, longest: int = _LONGEST) -> str:
    """`value` as a code span of Markdown, which nothing in it can end; also within a table."""
    return "`" + shown(value, longest=longest).replace("`", "'").replace("|", "\\|") + "`"


def short(digest: object) -> str:
    """The first 12 digits of a digest or key, after its ``sha256:`` if it has one, as people compare them."""
    text = shown(digest)
    head, colon, tail = text.rpartition(":")
    return f"{head}{colon}{tail[:12]}" if len(tail) > 12 else text


def utc(moment: datetime | float | None = None) -> str:
    """A time (seconds since 1970 or with a time zone; now) in UTC, ISO 8601: ``2026-01-31T12:00:00Z``."""
    if not isinstance(moment, datetime):
        moment = datetime.fromtimestamp(time.time() if moment is None else moment, timezone.utc)
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def human_bytes(amount: int) -> str:
    """`amount` bytes in decimal units (kB is 1000), as disks and registries count them: ``1.5 GB``."""
    value = float(amount)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def human_seconds(seconds: float) -> str:
    """``0.3 s``, ``12 s``, ``3 m 05 s``, ``1 h 02 m``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} m"
