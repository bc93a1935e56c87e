"""How a long stage tells how far it is, without knowing who listens."""

from __future__ import annotations

from typing import Protocol


class Meter(Protocol):
    """Receives the progress of one stage. Safe to call from several threads."""

    def total(self, amount: int) -> None:
        """Announce `amount` more bytes of work; may be called again when more is found."""

    def advance(self, amount: int) -> None:
        """Count `amount` bytes as done."""

    def line(self, text: str) -> None:
        """Pass on one line of a tool's own output (build steps and the like), without its newline."""


class _Silent:
    def total(self, amount: int) -> None:
        pass

    def advance(self, amount: int) -> None:
        pass

    def line(self, text: str) -> None:
        pass


SILENT: Meter = _Silent()
