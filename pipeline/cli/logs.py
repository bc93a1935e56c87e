"""structlog for verbs that report progress: plain or JSON lines on stderr, never on stdout."""

from __future__ import annotations

import logging
from typing import Any

import structlog

from pipeline.cli import output

_FOR_MACHINES_ONLY = ("timestamp", "level", "run", "image")


class _StderrLogger:
    """What structlog writes to: whatever is drawn on stderr at the moment."""

    def msg(self, text: str) -> None:
        output.tell(text)

    log = debug = info = warn = warning = error = critical = exception = fatal = msg


def begin() -> None:
    """Set structlog up once a process, as the global options say."""
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
    text = f"{tool}: {text}" if tool else text  # so that no tool's line looks like one of ours
    details = "  ".join(f"{key}={value}" for key, value in event.items())
    mark = {"warning": "warning: ", "error": "error: ", "critical": "error: "}.get(method, "")
    return f"{stage:<8} {mark}{text}{'  ' + details if details else ''}".rstrip()
