"""How stages report what they do and how far they are, without knowing who listens."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol


class Task(Protocol):
    """Receives the progress of one stage. Safe to call from several threads."""

    def total(self, amount: int) -> None:
        """Announce `amount` more bytes of work; may be called again when more is found."""

    def advance(self, amount: int) -> None:
        """Count `amount` bytes as done."""

    def line(self, text: str) -> None:
        """Pass on one line of a tool's own output (build steps and the like), without its newline."""


class Progress(Protocol):
    """Follows one image through its stages."""

    def stage(self, name: str) -> AbstractContextManager[Task]:
        """Open a stage; leaving it normally means that it is done, with an exception that it failed."""

    def skip(self, name: str, why: str) -> None:
        """Say that a stage has nothing to do, and why."""

    def result(self, text: str) -> None:
        """Report the result of the open stage in a few words (a digest, a verdict)."""


class _NoTask:
    def total(self, amount: int) -> None:
        pass

    def advance(self, amount: int) -> None:
        pass

    def line(self, text: str) -> None:
        pass


NO_TASK: Task = _NoTask()
