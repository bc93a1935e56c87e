"""Writing many small buffers in a row with one call, and all of them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pipeline.squashfs.codecs import Stored

_AT_ONCE = 1024  # buffers that one call takes (IOV_MAX of Linux)


def write_at(descriptor: int, parts: Sequence[Stored], position: int) -> int:
    """Write all `parts` one after the other from `position` on; returns their bytes together.

    OSError when they cannot be written; a part may then be there.
    """
    begin = position
    for first in range(0, len(parts), _AT_ONCE):
        position = _write_some(descriptor, parts[first : first + _AT_ONCE], position)
    return position - begin


def _write_some(descriptor: int, parts: Sequence[Stored], position: int) -> int:
    total = sum(map(len, parts))
    written = os.pwritev(descriptor, parts, position)
    if written == total:
        return position + total
    rest = memoryview(b"".join(parts))  # a signal came, or the disk is nearly full: rare enough for a copy
    while written < total:
        written += os.pwrite(descriptor, rest[written:], position + written)
    return position + total
