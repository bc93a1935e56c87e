"""What people and machines see: data on stdout, the story on stderr."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from pipeline.errors import SqshpipeError


@dataclass(slots=True)
class _Style:
    """Set once a process by `configure`."""

    quiet: bool = False
    verbose: bool = False
    json_log: bool = False


_style = _Style()


def _to_stderr(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


_writers: list[Callable[[str], None]] = [_to_stderr]


@contextmanager
def diverted(writer: Callable[[str], None]) -> Iterator[None]:
    """While a progress bar is drawn, lines go through it, so that they appear above the bar."""
    _writers.append(writer)
    try:
        yield
    finally:
        _writers.pop()


class _StderrLogger:
    """What structlog writes to: the innermost writer of the moment."""

    def msg(self, text: str) -> None:
        _writers[-1](text)

    log = debug = info = warn = warning = error = critical = exception = fatal = msg


def configure(*, quiet: bool, verbose: bool, log_format: str) -> None:
    """Set up structlog once a process: plain or JSON lines on stderr, never on stdout."""
    _style.quiet, _style.verbose, _style.json_log = quiet, verbose, log_format == "json"
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO
    renderer: Any = structlog.processors.JSONRenderer() if _style.json_log else _plain_line
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _StderrLogger(),
        cache_logger_on_first_use=False,
    )


def is_quiet() -> bool:
    return _style.quiet


def is_verbose() -> bool:
    return _style.verbose


def logs_json() -> bool:
    return _style.json_log


def draws_bars() -> bool:
    """Whether stderr is a terminal on which a person watches."""
    return sys.stderr.isatty() and not _style.quiet and not _style.json_log


_FOR_MACHINES_ONLY = ("timestamp", "run", "image")


def _plain_line(_logger: Any, method: str, event: Any) -> str:
    stage = event.pop("stage", "")
    event.pop("level", None)
    for key in _FOR_MACHINES_ONLY:
        event.pop(key, None)
    text = safe(str(event.pop("event")))
    details = "  ".join(f"{key}={safe(str(value))}" for key, value in event.items())
    mark = {"warning": "warning: ", "error": "error: ", "critical": "error: "}.get(method, "")
    return f"{stage:<8} {mark}{text}{'  ' + details if details else ''}".rstrip()


def safe(text: str) -> str:
    """`text` with control characters escaped: a hostile name can neither move the cursor nor fake a line."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def data(text: str) -> None:
    """One line of result for scripts."""
    sys.stdout.write(text + "\n")


def data_json(value: object) -> None:
    """A result for machines."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def failure(error: SqshpipeError) -> None:
    """Tell a foreseeable end: what happened and what to do."""
    if _style.json_log:
        log = structlog.get_logger()
        log.error(error.message, hint=error.hint, exit_code=error.exit_code, kind=type(error).__name__)
        return
    _to_stderr(f"sqshpipe: {_safe_lines(error.message)}")
    if error.hint:
        _to_stderr(f"          {_safe_lines(error.hint)}")


def _safe_lines(text: str) -> str:
    return "\n          ".join(safe(line) for line in text.splitlines())


def interrupted(word: str) -> None:
    """Tell that a signal ended the run."""
    _to_stderr(f"sqshpipe: {word}; nothing half-done is visible, scratch is removed")
