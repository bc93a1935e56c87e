"""How fast ``native`` was on this host, kept in the cache folder for the one line that `auto` prints."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from pipeline.system import untrusted

_FILE = "native.json"
_LEAST = 8 << 20  # stored bytes of layers; fewer say nothing about a rate
_LIMIT = 1024


def note(cache: Path, *, seconds: float, size: int) -> None:
    """Remember that layers of `size` stored bytes were packed and stitched in so many seconds."""
    if size >= _LEAST and seconds > 0:
        with contextlib.suppress(OSError):  # it is only an estimate that is lost
            text = json.dumps({"seconds": round(seconds, 3), "size": size})
            untrusted.replace_file(cache / _FILE, text.encode() + b"\n")


def expected(cache: Path, size: int) -> float | None:
    """Seconds that ``native`` takes for layers of `size` stored bytes without packs; None: never measured."""
    try:
        data = json.loads(untrusted.read_regular(cache / _FILE, limit=_LIMIT))
        seconds, measured = float(data["seconds"]), int(data["size"])
    except (OSError, ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return None
    if measured < _LEAST or not 0 < seconds < 1e6:
        return None
    return seconds * size / measured
