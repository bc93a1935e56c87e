"""Errors of a disk that does not take what is written to it, as one sentence."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from pipeline.errors import ToolError

_LARGER = "free some, or point SQSHPIPE_CACHE and SQSHPIPE_SCRATCH elsewhere"


def is_full(error: OSError) -> bool:
    """Whether a disk or a quota had no room."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def says_full(text: str) -> bool:
    """Whether the message of another program says that the disk is full."""
    return "no space left on device" in text.lower() or "disk quota exceeded" in text.lower()


def cannot_write(error: OSError, path: Path, *, hint: str = _LARGER) -> ToolError:
    """The error to raise when writing ``path`` failed with ``error``; ``hint`` is for a disk that is full."""
    if is_full(error):
        return ToolError(f"no space left for {path.name} in {path.parent}", hint=hint)
    return ToolError(f"cannot write {path}: {error.strerror or os.strerror(error.errno or 0)}")


def drop_cache(descriptor: int) -> None:
    """Write an open file to the disk and let the page cache forget it: what is read then comes from the disk.

    The disk's own cache, and the memory of a file server, may still answer. Raises OSError.
    """
    os.fdatasync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def write_text(path: Path, text: str) -> None:
    """Write one of our small files. Raises ToolError when it cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise cannot_write(error, path) from error
