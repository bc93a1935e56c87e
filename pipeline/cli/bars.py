"""The text next to the spinner while a stage runs; in its own module, since to import rich takes time."""

from __future__ import annotations

from rich.console import RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    ProgressColumn,
    Task,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text


class _When(ProgressColumn):
    """Another column, drawn only while the task's bytes are known, or only while they are not."""

    def __init__(self, column: ProgressColumn, *, known: bool) -> None:
        super().__init__(table_column=column.get_table_column())
        self._column = column
        self._known = known

    def render(self, task: Task) -> RenderableType:
        """What to draw for `task` now."""
        return self._column(task) if (task.total is not None) is self._known else Text()


def columns() -> list[ProgressColumn]:
    """The time spent; once a stage knows how many bytes it has to do, bar, bytes, rate and time left."""
    known = (
        BarColumn(bar_width=20),
        DownloadColumn(binary_units=False),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )
    return [_When(TimeElapsedColumn(), known=False), *(_When(column, known=True) for column in known)]
