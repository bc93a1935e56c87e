"""The log of what happens: structlog, loaded at the first line that is shown.

Most ranks of `run` and most hooks of a job show none, and loading it is a quarter of their start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class _Log:
    """structlog's logger, with its methods `info`, `warning` and the rest."""

    def __init__(self) -> None:
        self.set_up()

    def set_up(
        self, configure: Callable[[], None] | None = None, *, shows_debug: Callable[[], bool] = lambda: True
    ) -> None:
        """Say how structlog is configured in this process, and ask this whether it shows lines of `debug`."""
        self._configure, self._shows_debug = configure, shows_debug

    def debug(self, event: str, **values: Any) -> None:
        """A line for those who ask for more; nothing is loaded for one that is not shown."""
        if self._shows_debug():
            self._logger().debug(event, **values)

    def __getattr__(self, method: str) -> Any:
        return getattr(self._logger(), method)

    def _logger(self) -> Any:
        import structlog

        if self._configure and not structlog.is_configured():
            self._configure()
        return structlog.get_logger()  # noqa: TID251 - here alone


log = _Log()
