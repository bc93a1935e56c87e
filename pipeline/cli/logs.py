"""structlog for verbs that report progress: plain or JSON lines on stderr, never on stdout."""

from __future__ import annotations

import logging
from typing import Any

from pipeline.cli import output
from pipeline.system.log import log

_FOR_MACHINES_ONLY = ("timestamp", "level", "run", "image")


class _StderrLogger:
    """What structlog writes to: whatever is drawn on stderr at the moment."""

    def msg(self, text: str) -> None:
        output.note(text)

    log = debug = info = warn = warning = error = critical = exception = fatal = msg


class _Library(logging.Handler):
    """Prints each warning of a library as one of our lines, escaped: it may contain what a server sent.

    Without a handler Python would print it unescaped.
    """

    def emit(self, record: logging.LogRecord) -> None:
        try:
            log.warning(record.getMessage(), tool=record.name)
        except Exception:  # noqa: BLE001 - a line that cannot be printed ends nothing
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name that logging calls
        """Say nothing: Python would print the record with a traceback."""


def begin() -> None:
    """Take the warnings of libraries, and set structlog up at the first line, as the global options say."""
    logging.lastResort = _Library(logging.WARNING)
    logging.captureWarnings(capture=True)  # which nobody then prints: they are for programmers
    log.set_up(_configure, shows_debug=output.is_verbose)


def _configure() -> None:
    import structlog

    level = logging.ERROR if output.is_quiet() else logging.DEBUG if output.is_verbose() else logging.INFO
    renderer: Any = structlog.processors.JSONRenderer() if output.logs_json() else _plain_line
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


def _plain_line(_logger: Any, method: str, event: Any) -> str:
    stage = event.pop("stage", "")
    for key in _FOR_MACHINES_ONLY:
        event.pop(key, None)
    tool, text = event.pop("tool", ""), event.pop("event")
    text = f"{tool}: {text}" if tool else text  # so that no line of a tool looks like our own
    details = "  ".join(f"{key}={value}" for key, value in event.items())
    mark = {"warning": "warning: ", "error": "error: ", "critical": "error: "}.get(method, "")
    return f"{stage:<8} {mark}{text}{'  ' + details if details else ''}".rstrip()
