"""What verbs that release many images share: the executor, the progress lines, the table of outcomes."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import output
from pipeline.system.log import log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.batch.local import Executor, ImageOutcome, Task
    from pipeline.config.types import Config


class ExecutorName(str, Enum):
    local = "local"
    slurm = "slurm"


Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, help="Number of images at the same time.")]
ExecutorOption = Annotated[
    ExecutorName, typer.Option("--executor", help="Where to run: on this machine, or as Slurm jobs.")
]
Shared = Annotated[
    Path | None,
    typer.Option(
        "--shared", envvar="SQSHPIPE_SHARED", help="A folder that all nodes see (--executor slurm)."
    ),
]


def release_all(
    names: Sequence[str],
    tag: str,
    *,
    config: Path,
    store: Path | None,
    registry: str | None,
    executor: ExecutorName,
    jobs: int,
    shared: Path | None,
    as_json: bool,
) -> None:
    """Release the named images, or all of them, under one version; a line of outcome each.

    Ends with the first failure's exit code, after all have been tried.
    """
    from pipeline.batch import local as batch
    from pipeline.config.names import check_version
    from pipeline.config.reading import load

    settings = load(config, store=store, registry=registry)
    specs = settings.select(names)
    version = check_version(tag, channels=[channel for spec in specs for channel in spec.channels])
    tasks = batch.tasks_for(settings, specs, lambda _: version)
    outcomes = follow(settings, tasks, executor_for(settings, executor, jobs, shared))
    if as_json:
        output.data_json([outcome_json(outcome) for outcome in outcomes])
    else:
        for outcome in outcomes:
            output.data(outcome_line(outcome))
    failed = next((outcome.code for outcome in outcomes if outcome.code), 0)
    if failed:
        raise typer.Exit(failed)


def executor_for(settings: Config, name: ExecutorName, jobs: int, shared: Path | None) -> Executor:
    """The executor; ``jobs`` bounds what runs at once, ``shared`` holds Slurm's results."""
    from pipeline.batch.local import LocalExecutor
    from pipeline.batch.slurm import SlurmExecutor

    if name is ExecutorName.local:
        return LocalExecutor(limit=jobs)
    folder = shared or settings.path.resolve().parent / "out" / "batches"
    return SlurmExecutor(shared=folder.absolute(), limit=jobs if jobs > 1 else None)


def follow(settings: Config, tasks: Sequence[Task], executor: Executor) -> tuple[ImageOutcome, ...]:
    """Run ``tasks``; log each outcome as it comes, and send the notifications."""
    from pipeline.batch import local as batch
    from pipeline.notify.messages import Notifier, ended

    with Notifier(settings.notify, settings.cache / "sent") as notifier:

        def done(outcome: ImageOutcome) -> None:
            if outcome.code == 0:
                log.info("done", name=outcome.task.image, version=outcome.task.version, where=outcome.where)
            else:
                log.error(
                    "failed", name=outcome.task.image, code=outcome.code, why=outcome.error.partition("\n")[0]
                )
            task = outcome.task
            path = outcome.path or ""
            notifier.send(ended(task.image, task.version, outcome.code, outcome.error, path=path))

        return batch.run(settings, tasks, executor, done=done)


def outcome_line(outcome: ImageOutcome) -> str:
    """``published  demo:v1  /fsx/…`` or ``failed  demo:v1  exit 4``; `follow` has reported the reason."""
    name = f"{outcome.task.image}:{outcome.task.version}"
    if outcome.code == 0:
        return f"published  {name}  {outcome.path}"
    return f"failed     {name}  exit {outcome.code}"


def outcome_json(outcome: ImageOutcome) -> dict[str, object]:
    """The outcome as JSON."""
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
