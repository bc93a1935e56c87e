"""Errors for too little memory, which is foreseeable: a shell, a container or a batch job can limit it."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

from pipeline.errors import ToolError

_RESERVE = 24 << 20  # bytes; without any, Python cannot even leave a function by an exception
_PAGE = os.sysconf("SC_PAGE_SIZE")
_NO_THREAD = "can't start new thread"  # what threading says; its stack is memory too


def out_of_memory(error: BaseException) -> ToolError | None:
    """The error to end with when ``error`` means that memory is used up; None for any other."""
    short = isinstance(error, MemoryError)
    short = short or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    short = short or (isinstance(error, RuntimeError) and str(error) == _NO_THREAD)
    if not short:
        return None
    return ToolError(
        "the memory that this process may use is used up",
        hint="allow it more: ulimit -v, the limit of the container or --mem of the job; 2 GB are enough"
        " for most images",
    )


def require_memory(more: int = 0) -> None:
    """Raise MemoryError when ``more`` bytes, and a reserve, are beyond what `ulimit -v` allows.

    Asked before much is taken: a process that has come to the very end of its memory can hang or crash.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * _PAGE
    if used + more + _RESERVE > limit:
        raise MemoryError(f"{used} bytes of {limit} are used, {more} are needed")
