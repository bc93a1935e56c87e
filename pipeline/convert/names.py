"""Paths out of images as people see them: whatever bytes they hold, one harmless line."""

from __future__ import annotations

from pipeline.text import escaped

_LONGEST = 200


def shown(path: bytes) -> str:
    """``/etc/passwd``; what a terminal might act on, or is no UTF-8, as ``\\x1b``; cut when long."""
    safe = escaped(path.decode("utf-8", "backslashreplace"))
    if len(safe) > _LONGEST:
        half = _LONGEST // 2
        safe = f"{safe[:half]}…{safe[-half:]}"
    return "/" + safe
