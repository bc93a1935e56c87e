"""An end for want of memory is foreseeable: a limit of the shell, of a container or of a batch job."""

from __future__ import annotations

import errno

from pipeline.errors import ToolError

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
