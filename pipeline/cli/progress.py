"""Progress on stderr: bars on a terminal, plain lines elsewhere, and a summary at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from structlog.contextvars import bound_contextvars

from pipeline.cli import output
from pipeline.progress import Progress, Task
from pipeline.system.log import log
from pipeline.text import human_bytes, human_seconds, said

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID


@dataclass(slots=True)
class StageTime:
    """What the summary says of one stage: seconds, bytes, and its result or the reason for skipping it."""

    name: str
    seconds: float = 0.0
    bytes_done: int = 0
    outcome: str = "done"
    text: str = ""


@dataclass(slots=True)
class _CountingTask:
    """Counts for the summary; passes on to a bar where there is one."""

    stage: StageTime
    bar: tuple[Bars, TaskID] | None = None
    announced: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def total(self, amount: int) -> None:
        with self.lock:
            self.announced += amount
            if self.bar:
                self.bar[0].update(self.bar[1], total=self.announced)

    def advance(self, amount: int) -> None:
        with self.lock:
            self.stage.bytes_done += amount
            if self.bar:
                self.bar[0].update(self.bar[1], advance=amount)

    def line(self, text: str) -> None:
        log.info(said(text))


@dataclass(slots=True)
class ConsoleProgress:
    """A `Progress` for people and CI logs; `stages` holds what happened, for the summary and ``--json``."""

    stages: list[StageTime] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[Task]:
        entry = StageTime(name)
        self.stages.append(entry)
        started = time.monotonic()
        with bound_contextvars(stage=name):
            try:
                with _meter(entry) as task:
                    yield task
            except BaseException:
                entry.outcome = "failed"
                raise
            finally:
                entry.seconds = time.monotonic() - started
            _log_done(entry)

    def skip(self, name: str, why: str) -> None:
        self.stages.append(StageTime(name, outcome="skipped", text=why))
        with bound_contextvars(stage=name):
            log.info(f"skipped: {why}")

    def result(self, text: str) -> None:
        self.stages[-1].text = text

    def as_json(self) -> list[dict[str, object]]:
        """The stages in order, seconds as float, bytes as int."""
        return [
            {
                "stage": stage.name,
                "outcome": stage.outcome,
                "seconds": round(stage.seconds, 3),
                "bytes": stage.bytes_done,
                "text": stage.text,
            }
            for stage in self.stages
        ]

    def summary(self) -> None:
        """Log at the end how long each stage took, unless all were skipped."""
        spent = [stage for stage in self.stages if stage.outcome != "skipped"]
        if not spent or output.logs_json():
            return
        width = max(len(stage.name) for stage in spent)
        for stage in spent:
            amount = human_bytes(stage.bytes_done) if stage.bytes_done else ""
            log.info(f"  {stage.name:<{width}}  {human_seconds(stage.seconds):>8}  {amount:>9}".rstrip())
        log.info(f"  {'total':<{width}}  {human_seconds(sum(stage.seconds for stage in spent)):>8}")


@contextmanager
def _meter(entry: StageTime) -> Iterator[Task]:
    if not output.draws_bars():
        yield _CountingTask(entry)
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn
    from rich.text import Text

    from pipeline.cli.bars import columns

    console = Console(stderr=True, highlight=False)
    drawn = (TextColumn(f"{entry.name:<8}"), SpinnerColumn(), *columns())
    with Progress(*drawn, console=console, transient=True, refresh_per_second=8) as progress:
        task = progress.add_task(entry.name, total=None)
        with output.diverted(lambda text: console.print(Text(output.fitted(text)), soft_wrap=True)):
            yield _CountingTask(entry, bar=(progress, task))


def _log_done(entry: StageTime) -> None:
    if output.logs_json():
        log.info("done", seconds=round(entry.seconds, 3), bytes=entry.bytes_done, result=entry.text)
        return
    parts = [human_seconds(entry.seconds)]
    if entry.bytes_done:
        parts.append(human_bytes(entry.bytes_done))
        if entry.seconds > 0.5:
            parts.append(f"{human_bytes(int(entry.bytes_done / entry.seconds))}/s")
    log.info(f"{entry.text or 'done'}  ({', '.join(parts)})")


_: type[Progress] = ConsoleProgress
