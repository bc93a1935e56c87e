"""What people and machines see: data on stdout, the story on stderr."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import structlog

from pipeline.errors import SqshpipeError


def configure(*, quiet: bool, verbose: bool, log_format: str) -> None:
    """Set up structlog once a process: plain or JSON lines on stderr, never on stdout."""
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO
    renderer: Any = structlog.processors.JSONRenderer() if log_format == "json" else _plain_line
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


def _plain_line(_logger: Any, _method: str, event: Any) -> str:
    stage = event.pop("stage", None)
    for unwanted in ("timestamp", "level", "run", "image"):
        event.pop(unwanted, None)
    text = str(event.pop("event"))
    details = " ".join(f"{key}={value}" for key, value in event.items())
    prefix = f"{stage:<8} " if stage else ""
    return f"{prefix}{text}{'  ' + details if details else ''}"


def data(text: str) -> None:
    """One line of result for scripts."""
    sys.stdout.write(text + "\n")


def data_json(value: object) -> None:
    """A result for machines."""
    sys.stdout.write(json.dumps(value, indent=2, sort_keys=False, ensure_ascii=False) + "\n")


def failure(error: SqshpipeError) -> None:
    """Tell a foreseeable end: what happened and what to do."""
    sys.stderr.write(f"sqshpipe: {error.message}\n")
    if error.hint:
        sys.stderr.write(f"          {error.hint}\n")


def interrupted(word: str) -> None:
    sys.stderr.write(f"sqshpipe: {word}; nothing was published, scratch is removed\n")
