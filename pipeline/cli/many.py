"""What verbs that release many images share: the executor, the story, the table of outcomes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from pipeline.errors import ConfigError, ScanRejected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.batch import Executor, Outcome, Task
    from pipeline.config import Config
    from pipeline.notify import Event

log = structlog.get_logger()


def executor_for(settings: Config, name: str, jobs: int, shared: Path | None) -> Executor:
    """The executor called ``name``; ``jobs`` bounds what runs at once, ``shared`` holds Slurm's results."""
    from pipeline.batch import LocalExecutor
    from pipeline.batch_slurm import SlurmExecutor

    if name == "local":
        return LocalExecutor(limit=jobs)
    if name != "slurm":
        raise ConfigError(f"there is no executor {name!r}", hint="local and slurm are there")
    folder = shared or settings.path.resolve().parent / "out" / "batches"
    return SlurmExecutor(shared=folder.absolute(), limit=jobs if jobs > 1 else None)


def follow(settings: Config, tasks: Sequence[Task], executor: Executor) -> tuple[Outcome, ...]:
    """Run ``tasks``, say each outcome as it comes, and tell people of it."""
    from pipeline import batch
    from pipeline.notify import Notifier

    with Notifier(settings.notify, settings.cache / "told") as notifier:

        def done(outcome: Outcome) -> None:
            if outcome.code == 0:
                log.info("done", name=outcome.task.image, version=outcome.task.version, where=outcome.where)
            else:
                log.error("failed", name=outcome.task.image, code=outcome.code, why=outcome.error)
            notifier.tell(event_for(outcome))

        return batch.run(settings, tasks, executor, done=done)


def event_for(outcome: Outcome) -> Event:
    """What people are told of one image's end."""
    from pipeline.notify import Event

    name = f"{outcome.task.image}:{outcome.task.version}"
    if outcome.code == 0:
        details = {"path": outcome.path or ""}
        return Event(
            kind="published",
            image=outcome.task.image,
            text=f"{name} is published",
            about=outcome.task.version,
            details=details,
        )
    return Event(
        kind="blocked" if outcome.code == ScanRejected.exit_code else "failed",
        image=outcome.task.image,
        text=f"{name}: {outcome.error}",
        about=f"{outcome.task.version} {outcome.error}",
    )


def outcome_line(outcome: Outcome) -> str:
    """``published  demo:v1  /fsx/…`` or ``failed  demo:v1  why``."""
    name = f"{outcome.task.image}:{outcome.task.version}"
    if outcome.code == 0:
        return f"published  {name}  {outcome.path}"
    last = outcome.error.splitlines()[-1] if outcome.error else ""
    return f"failed     {name}  exit {outcome.code}: {last}"


def outcome_json(outcome: Outcome) -> dict[str, object]:
    """The outcome for machines."""
    return {
        "image": outcome.task.image,
        "version": outcome.task.version,
        "code": outcome.code,
        "path": outcome.path,
        "error": outcome.error or None,
        "seconds": round(outcome.seconds, 1),
        "attempts": outcome.attempts,
        "where": outcome.where or None,
    }
