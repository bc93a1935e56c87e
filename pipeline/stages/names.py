"""Paths out of images as they are told to people: whatever bytes they hold, one harmless line."""

from __future__ import annotations

_LONGEST = 200


def shown(path: bytes) -> str:
    """``/etc/passwd``; what a terminal might act on, or is no UTF-8, as ``\\x1b``; cut when long."""
    text = path.decode("utf-8", "backslashreplace")
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    if len(safe) > _LONGEST:
        half = _LONGEST // 2
        safe = f"{safe[:half]}…{safe[-half:]}"
    return "/" + safe
