"""What people and machines see: results on stdout, progress and errors on stderr.

This is the one door to both. Whatever goes through it is escaped here, one line each, so that nothing that a
registry, a tool, a record or another user wrote moves the cursor, fakes a line or gives orders to GitHub's
runner. Only `data_bytes` writes bytes as they are.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError, SqshpipeError, ToolError
from pipeline.report.text import cells, folded
from pipeline.text import escaped

_NO_ORDER = "#\\u0023["  # JSON readers see the same
_ORDER = re.compile(r"^(\s*)::")


@dataclass(slots=True)
class _Style:
    """Set once a process by `configure`."""

    quiet: bool = False
    verbose: bool = False
    json_log: bool = False


_style = _Style()


_INDENT = 4  # spaces before the rest of a line of result that is longer than the terminal is wide
_STAGE, _FAILURE = " " * 9, " " * 10  # what stands before the text of a stage's line and of an error's


def _to_stderr(line: str) -> None:
    """Print a line, escaped. A stderr that is full, closed or no longer read does not end the work."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write("".join(_inert(part) + "\n" for part in fitted(escaped(line)).split("\n")))
        sys.stderr.flush()


def _to_stdout(text: str) -> None:
    """Print text that is escaped already. Raises ToolError where stdout takes nothing, as a full disk."""
    try:
        sys.stdout.write(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise unwritable(error) from error


def unwritable(error: OSError) -> ToolError:
    """That the result could not be written to stdout."""
    return ToolError(f"the result cannot be written to stdout: {error.strerror}")


def fitted(text: str) -> str:
    """`text` broken to the terminal's width; as it is where nobody watches, or in a machine's log."""
    width = shutil.get_terminal_size().columns if draws_bars() else 0
    if not width or cells(text) <= width:
        return text
    indent = _FAILURE if text.startswith(("sqshpipe: ", _FAILURE)) else _STAGE
    return "\n".join(folded(text, width, len(indent)))


_writers: list[Callable[[str], None]] = [_to_stderr]


@contextmanager
def diverted(writer: Callable[[str], None]) -> Iterator[None]:
    """While a progress bar is drawn, lines go through it, so that they appear above the bar."""
    _writers.append(writer)
    try:
        yield
    finally:
        _writers.pop()


def configure(*, quiet: bool, verbose: bool, json_log: bool) -> None:
    """Store the global options -q, -v and --log-format for everything that is printed later."""
    _style.quiet, _style.verbose, _style.json_log = quiet, verbose, json_log


def be_quiet() -> None:
    """Print only errors from now on."""
    _style.quiet = True


def be_verbose() -> None:
    """Print also what tools print from now on."""
    _style.verbose = True


def note(text: str) -> None:
    """One line of progress, escaped, through whatever is drawn on stderr at the moment."""
    _writers[-1](escaped(text))


def is_quiet() -> bool:
    return _style.quiet


def is_verbose() -> bool:
    return _style.verbose


def logs_json() -> bool:
    return _style.json_log


def draws_bars() -> bool:
    """Whether stderr is a terminal on which a person watches."""
    return sys.stderr.isatty() and not _style.quiet and not _style.json_log


def _inert(line: str) -> str:
    """`line` without orders to GitHub's runner, which takes them from whatever a step prints: `::error::` at
    the start of a line, `##[error]` anywhere. A tool's output or a registry's words may hold them.
    """
    if "GITHUB_ACTIONS" not in os.environ:
        return line
    return _ORDER.sub(r"\g<1>\\u003a:", line).replace("##[", _NO_ORDER)


def data(text: str) -> None:
    """One line of result, escaped; on a terminal broken to its width."""
    text = escaped(text)
    on_terminal = sys.stdout.isatty()
    for line in folded(text, shutil.get_terminal_size().columns, _INDENT) if on_terminal else [text]:
        _to_stdout(_inert(line) + "\n")


def data_path(path: Path) -> None:
    """The path of a result. Bytes that are not text are escaped for a terminal and kept for a script."""
    text = str(path)
    if sys.stdout.isatty() or escaped(text) == text or not _is_text_or_bytes(text):
        _to_stdout(_inert(escaped(text)) + "\n")
        return
    sys.stdout.flush()
    data_bytes([os.fsencode(text) + b"\n"])


def _is_text_or_bytes(text: str) -> bool:
    """Whether only bytes that are not text in this locale would have to be escaped in `text`."""
    return all(char.isprintable() or "\udc80" <= char <= "\udcff" for char in text)


def document(text: str) -> None:
    """A file that we made, such as a script, as it is.

    Raises ConfigError for control characters other than line breaks and tabs: escaped, the text would differ.
    """
    if _escaped_lines(text) != text:
        raise ConfigError(
            "what would be printed holds control characters, from an argument or a setting",
            hint="leave them out, or write it to a file with --output",
        )
    for line in text.rstrip("\n").split("\n"):
        _to_stdout(_inert(line) + "\n")


def _escaped_lines(text: str) -> str:
    return "\n".join("\t".join(map(escaped, line.split("\t"))) for line in text.split("\n"))


def data_bytes(pieces: Iterable[bytes]) -> None:
    """A file's own bytes: as they are for a script, on a terminal escaped but for line breaks and tabs."""
    if sys.stdout.isatty():
        decode = codecs.getincrementaldecoder("utf-8")("backslashreplace").decode
        for piece in pieces:
            _to_stdout(_escaped_lines(decode(piece)))
        return
    try:
        for piece in pieces:
            sys.stdout.buffer.write(piece)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise unwritable(error) from error


def data_json(value: object) -> None:
    """A result for machines: ASCII alone, so that every terminal and every locale can hold it."""
    text = json.dumps(value, indent=2)
    if "GITHUB_ACTIONS" in os.environ:
        text = text.replace("##[", _NO_ORDER)
    _to_stdout(text + "\n")


def failure(error: SqshpipeError) -> None:
    """Print a foreseeable error: what happened and what to do."""
    if _style.json_log:
        event = {"event": error.message, "level": "error", "hint": error.hint, "exit_code": error.exit_code}
        _to_stderr(json.dumps({**event, "kind": type(error).__name__}))
        return
    _to_stderr(f"sqshpipe: {error.headline}")
    for line in (*error.details, *([error.hint] if error.hint else [])):
        _to_stderr(_FAILURE + line)


def unexpected(error: Exception) -> None:
    """Print an error that nobody foresaw; with its traceback only with -v."""
    _to_stderr(f"sqshpipe: unexpected {type(error).__name__}: {error}")
    if _style.verbose:
        for line in "".join(traceback.format_exception(error)).rstrip("\n").split("\n"):
            _to_stderr(line)
    else:
        _to_stderr("          this is a defect of sqshpipe: run it again with -v and report what it prints")


def interrupted(word: str) -> None:
    """Print that a signal ended the run."""
    _to_stderr(f"sqshpipe: {word}; nothing half-done is visible, scratch is removed")
