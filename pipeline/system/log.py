"""The log of what happens: structlog, loaded at the first line.

Most ranks of `run` and most hooks of a job print none, and loading it is a quarter of their start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

set_up: list[Callable[[], None]] = []  # what configures structlog in this process; at most one


class _Log:
    """structlog's logger, with its methods `info`, `warning`, `debug` and the rest."""

    def __getattr__(self, method: str) -> Any:
        import structlog

        if set_up and not structlog.is_configured():
            set_up[0]()
        return getattr(structlog.get_logger(), method)  # noqa: TID251 - here alone


log: Any = _Log()
