"""What people and machines see: data on stdout, the story on stderr."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline.errors import SqshpipeError
from pipeline.report.text import cells
from pipeline.words import escaped

_NO_ORDER = "#\\u0023["  # the same to whoever reads JSON
_ORDER = re.compile(r"^(\s*)::")
# what moves, hides or reorders text and is left as it is by JSON: C1 controls, separators, marks of direction
_UNSEEN = re.compile(r"[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


@dataclass(slots=True)
class _Style:
    """Set once a process by `configure`."""

    quiet: bool = False
    verbose: bool = False
    json_log: bool = False


_style = _Style()


_STAGE, _FAILURE = " " * 9, " " * 10  # what stands before the text of a stage's line and of an error's


def _to_stderr(text: str) -> None:
    sys.stderr.write("".join(_inert(fitted(line)) + "\n" for line in text.split("\n")))
    sys.stderr.flush()


def fitted(text: str) -> str:
    """`text` broken at spaces to the terminal's width; as it is where nobody watches, or in a machine's log.

    A word longer than a line is left to the terminal, so that a path or digest can be copied whole.
    """
    width = shutil.get_terminal_size().columns if draws_bars() else 0
    if width < 40 or cells(text) <= width:
        return text
    indent = _FAILURE if text.startswith(("sqshpipe: ", _FAILURE)) else _STAGE
    lines, line = [], ""
    for word in re.findall(r" *[^ ]+", text):
        if len(line) > len(indent) and cells(line + word) > width:
            lines.append(line)
            line = indent + word.lstrip()
        else:
            line += word
    return "\n".join([*lines, line])


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
    """Keep what the global options say."""
    _style.quiet, _style.verbose, _style.json_log = quiet, verbose, json_log


def tell(text: str) -> None:
    """One line of the story, through whatever is drawn on stderr at the moment."""
    _writers[-1](text)


def log() -> Any:
    """structlog's logger, loaded when something is said: verbs that say nothing start faster."""
    import structlog

    return structlog.get_logger()


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
    """One line of result for scripts."""
    sys.stdout.write(_inert(text) + "\n")


def data_bytes(pieces: Iterable[bytes]) -> None:
    """A file's own bytes, as they are."""
    for piece in pieces:
        sys.stdout.buffer.write(piece)


def data_json(value: object) -> None:
    """A result for machines."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    text = _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)  # a terminal may heed them
    if "GITHUB_ACTIONS" in os.environ:
        text = text.replace("##[", _NO_ORDER)
    sys.stdout.write(text + "\n")


def failure(error: SqshpipeError) -> None:
    """Tell a foreseeable end: what happened and what to do."""
    if _style.json_log:
        event = {"event": error.message, "level": "error", "hint": error.hint, "exit_code": error.exit_code}
        _to_stderr(json.dumps({**event, "kind": type(error).__name__}))
        return
    _to_stderr(f"sqshpipe: {_safe_lines(error.message)}")
    if error.hint:
        _to_stderr(_FAILURE + _safe_lines(error.hint))


def _safe_lines(text: str) -> str:
    return f"\n{_FAILURE}".join(escaped(line) for line in text.splitlines())


def unexpected(error: Exception) -> None:
    """Tell an end that nobody foresaw; the traceback only for those who ask for it."""
    _to_stderr(f"sqshpipe: unexpected {type(error).__name__}: {_safe_lines(str(error))}")
    if _style.verbose:
        traceback.print_exception(error)
    else:
        _to_stderr("          this is a defect of sqshpipe: run it again with -v and report what it prints")


def interrupted(word: str) -> None:
    """Tell that a signal ended the run."""
    _to_stderr(f"sqshpipe: {word}; nothing half-done is visible, scratch is removed")
