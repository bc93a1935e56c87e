"""stdin, stdout and stderr as every verb may count on them: open, and able to show any text."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import sys
from typing import TextIO

from pipeline.cli import output
from pipeline.errors import EXIT_DONE, ToolError

_STANDARD = (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w"))


def prepare() -> None:
    """Open closed standard descriptors on /dev/null, and let the streams escape what they cannot encode.

    A closed one (``>&-``) would be the number of the next file that is opened: what is printed, by a tool
    that we start too, would be written into that file.
    """
    for name, number, mode in _STANDARD:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 - a descriptor
            setattr(sys, name, stream)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def is_from_stdout(error: OSError) -> bool:
    """Whether a write to stdout has failed by `error`: typer writes help pages by itself, not by `output`."""
    if error.errno != errno.EBADF:
        return False
    try:
        return fcntl.fcntl(sys.stdout.fileno(), fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    except (OSError, ValueError):  # no file at all
        return False


def finish(code: int) -> int:
    """Write out what is buffered and give the exit code: `code`, or 3 where the result could not be written.

    Python would do it after our last line, with a traceback and exit code 120.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
    except OSError as error:
        _discard(sys.stdout)
        if code == EXIT_DONE:
            output.failure(output.unwritable(error))
            code = ToolError.exit_code
    try:
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)
    return code


def _discard(stream: TextIO) -> None:
    """What is still buffered goes nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
