"""Reading from and writing to a disk: its errors as one sentence, reads past the page cache."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import ToolError

NOT_DIRECT = (errno.EINVAL, errno.EOPNOTSUPP)
"""With which a read is refused that cannot pass the page cache by."""
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


@contextlib.contextmanager
def reopened_direct(descriptor: int) -> Iterator[int]:
    """An open file once more, for reads that pass the page cache by and leave it as it is (O_DIRECT).

    Position, length and memory of each read are multiples of ``mmap.PAGESIZE``. The file is written to the
    disk first. Where the file system has no such reads, the descriptor is the one given and the page cache
    has forgotten the file. Raises OSError.
    """
    os.fdatasync(descriptor)
    try:
        direct = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        direct = -1
    try:
        if direct >= 0 and _reads(direct):
            yield direct
        else:
            drop_cache(descriptor)
            yield descriptor
    finally:
        if direct >= 0:
            os.close(direct)


def _reads(descriptor: int) -> bool:
    """Some file systems open a file with O_DIRECT and refuse each read."""
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        try:
            os.preadv(descriptor, [page], 0)
        except OSError as error:
            if error.errno in NOT_DIRECT:
                return False
            raise
    return True


def write_text(path: Path, text: str) -> None:
    """Write one of our small files. Raises ToolError when it cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise cannot_write(error, path) from error
