"""What stands beside the spinner while a stage runs; apart, since rich costs start-up time."""

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
from rich.table import Table


class Amounts(ProgressColumn):
    """The time spent so far; once a stage knows how many bytes it has to do, bar, bytes, rate and time left."""

    max_refresh = 0.1

    def __init__(self) -> None:
        super().__init__()
        self._elapsed = TimeElapsedColumn()
        self._columns = (
            BarColumn(bar_width=20),
            DownloadColumn(binary_units=False),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True),
        )

    def render(self, task: Task) -> RenderableType:
        """What to draw for `task` now."""
        if task.total is None:
            return self._elapsed.render(task)
        row = Table.grid(padding=(0, 1))
        row.add_row(*(column(task) for column in self._columns))
        return row
