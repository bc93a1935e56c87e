"""The command line: the only place that prints results and exits."""

from __future__ import annotations

import errno
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import typer

from pipeline.cli import output, streams
from pipeline.cli.tree import command_line
from pipeline.errors import EXIT_DONE, EXIT_SIGINT, EXIT_SIGTERM, ConfigError, SqshpipeError, ToolError
from pipeline.system.memory import out_of_memory


class _Terminated(BaseException):
    """SIGTERM, raised so that every ``finally`` on the way out removes its scratch."""


class _Interrupted(BaseException):
    """Ctrl-C. A KeyboardInterrupt would be typer's, which ends without a message."""


def _on_sigterm(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise _Terminated


def _on_sigint(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise _Interrupted


def main() -> NoReturn:
    """Run the command line and exit with the code that `pipeline.errors` documents."""
    _open_closed_streams()
    try:
        signal.signal(signal.SIGTERM, _on_sigterm)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else our caller has it ignored
            signal.signal(signal.SIGINT, _on_sigint)
        streams.prepare()
        code = streams.finish(_run())
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done and printed: a late Ctrl-C changes nothing
    except _Interrupted:  # while the end was reported
        code = EXIT_SIGINT
    except _Terminated:
        code = EXIT_SIGTERM
    sys.exit(code)


def _open_closed_streams() -> None:
    """Let standard streams that our caller has closed lead to /dev/null: else the next file that is opened
    would be one of them, and what is printed would be written into it.
    """
    opened = os.open(os.devnull, os.O_RDWR)  # a new file gets the lowest number that is free
    while opened <= 2:
        opened = os.open(os.devnull, os.O_RDWR)
    os.close(opened)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8")


def _run() -> int:
    try:
        return command_line(sys.argv[1:])(standalone_mode=False) or EXIT_DONE
    except SqshpipeError as error:
        output.failure(error)
        return error.exit_code
    except typer.TyperException as error:
        message = error.format_message()
        if message.strip():  # none where a group without a verb has shown its help
            output.failure(ConfigError(message, hint=_help_hint(error)))
        return ConfigError.exit_code
    except (_Interrupted, _Terminated, KeyboardInterrupt, typer.Abort) as end:
        return _ended_by(end)
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        return EXIT_DONE
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer met it first
            return EXIT_DONE
        raise
    except Exception as error:  # noqa: BLE001 - the last resort, with exit code 1
        if isinstance(error.__cause__, (_Interrupted, _Terminated)):  # 3.11 wraps it where a class is made
            return _ended_by(error.__cause__)
        return _not_ours(error)


def _ended_by(end: BaseException) -> int:
    """The exit code after a signal, which is reported."""
    terminated = isinstance(end, _Terminated)
    output.interrupted("terminated" if terminated else "interrupted")
    return EXIT_SIGTERM if terminated else EXIT_SIGINT


def _not_ours(error: Exception) -> int:
    """What Python or the system raised: no memory left, a file or disk that fails, else a defect here."""
    if short := out_of_memory(error):
        output.failure(short)
        return short.exit_code
    if isinstance(error, OSError):
        if streams.is_from_stdout(error):
            output.failure(output.unwritable(error))
            return ToolError.exit_code
        return _refused_by_system(error)
    output.unexpected(error)
    return SqshpipeError.exit_code


_FULL = "df shows which one is full; TMPDIR, SQSHPIPE_SCRATCH and SQSHPIPE_CACHE can name folders on others"
_WHAT_TO_DO = {
    errno.EACCES: "the file system denies it: use an account that may, or another place",
    errno.EPERM: "the file system denies it: use an account that may, or another place",
    errno.EROFS: "it is mounted read-only",
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "the quota is used up: free space there, or ask for more",
    errno.EIO: "the disk or the file system fails: the kernel's log says more",
    errno.ESTALE: "the file server no longer knows it: mount it again",
    errno.EEXIST: "a file or folder of that name is in the way: choose another name",
    errno.ENOTDIR: "a part of that path is a file, not a folder: choose another path",
    errno.EISDIR: "it is a folder, not a file: choose another path",
    errno.ELOOP: "its symlinks lead back to themselves: choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def _refused_by_system(error: OSError) -> int:
    """A file that the system refuses is not a defect of this program, wherever that happens."""
    from pipeline.system.disk import is_full

    if is_full(error) and error.filename is None:  # a write does not say where
        output.failure(ToolError(f"a disk is full: {error.strerror}", hint=_FULL))
        return ToolError.exit_code
    if error.errno == errno.ENOENT and "temporary directory" in str(error):
        output.failure(ToolError("no folder for temporary files takes one: is the disk full?", hint=_FULL))
        return ToolError.exit_code
    if error.errno == errno.ENOENT and _is_nowhere():
        output.failure(ConfigError("the working directory was deleted", hint="cd to a folder that is there"))
        return ConfigError.exit_code
    if error.filename is None or error.errno not in _WHAT_TO_DO:
        output.unexpected(error)
        return SqshpipeError.exit_code
    message = f"{os.fsdecode(error.filename)}: {error.strerror}"
    output.failure(ToolError(message, hint=_WHAT_TO_DO[error.errno]))
    return ToolError.exit_code


def _is_nowhere() -> bool:
    try:
        os.getcwd()  # noqa: PTH109 - Path.cwd() is this
    except FileNotFoundError:
        return True
    return False


def _help_hint(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path if context else 'sqshpipe'} --help says more"
