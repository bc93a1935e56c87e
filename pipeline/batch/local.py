"""Many images: one run of ``sqshpipe release`` each, some at once, on this machine or on Slurm.

An image that is based on another of them runs after it, and only when that one ended well.

Each image is a process of its own, so that the others continue when one fails or is killed. The stages are
keyed by content: to run one twice, also on two machines at once, takes time and has no other effect.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from pipeline.config.names import Version
from pipeline.config.types import Config, ImageSpec, SlurmSettings
from pipeline.errors import ConfigError, SqshpipeError
from pipeline.system import process, self_command
from pipeline.system.log import log
from pipeline.system.parallel import Crew

_OURS = "sqshpipe: "
_LAST_LINES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One image to release: the command, and the resources that it needs under Slurm.

    ``after`` names the images of the same batch that it is based on.
    """

    image: str
    version: Version
    argv: tuple[str, ...]
    folder: Path
    slurm: SlurmSettings = field(default_factory=SlurmSettings)
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOutcome:
    """How one task ended. ``code`` is its exit code; ``answer`` its own JSON; ``error`` its last message."""

    task: Task
    code: int
    answer: Mapping[str, Any]
    error: str
    seconds: float
    attempts: int = 1
    where: str = ""

    @property
    def path(self) -> str | None:
        """The published path, when it got that far."""
        return self.answer.get("path") if self.code == 0 else None


class Executor(Protocol):
    """Runs tasks and reports each outcome as it comes, in the caller's thread or another."""

    def run(self, tasks: Sequence[Task], done: Callable[[ImageOutcome], None]) -> None:
        """Run all ``tasks``, each once those that it is ``after`` ended well; returns when each has ended.

        Each stands behind those that it is ``after``. What a failure keeps from running is `left_out`.
        """


def tasks_for(
    config: Config, specs: Iterable[ImageSpec], version_of: Callable[[ImageSpec], Version]
) -> tuple[Task, ...]:
    """One task for each image, with this Python interpreter and the present overrides."""
    return tuple(
        Task(
            image=spec.name,
            version=version,
            argv=_argv(config, spec.name, version),
            folder=Path.cwd(),
            slurm=spec.slurm,
        )
        for spec in specs
        for version in (version_of(spec),)
    )


def _argv(config: Config, image: str, version: Version) -> tuple[str, ...]:
    words = ["release", image, "--tag", version, "--json"]
    words += ["--no-notify"]  # the caller notifies people, also about tasks that were lost
    words += ["--config", str(config.path.absolute()), "--store", str(config.store.root)]
    words += ["--registry", ("http://" if config.registry.plain_http else "") + config.registry.base]
    return tuple(self_command.verb(*words))


def run(
    config: Config, tasks: Sequence[Task], executor: Executor, *, done: Callable[[ImageOutcome], None]
) -> tuple[ImageOutcome, ...]:
    """Run ``tasks``, each after those on whose image it is based; outcomes in the order of ``tasks``.

    An image whose base failed here is not run: its outcome carries that base's exit code. Raises ConfigError
    for images that are based on one another.
    """
    found: dict[str, ImageOutcome] = {}

    def note(outcome: ImageOutcome) -> None:
        found[outcome.task.image] = outcome
        done(outcome)

    if tasks:
        executor.run(in_order(config, tasks), note)
    return tuple(found[task.image] for task in tasks)


def in_order(config: Config, tasks: Sequence[Task]) -> tuple[Task, ...]:
    """``tasks`` sorted so that each comes after those of its base images. Raises ConfigError for a cycle."""
    names = {task.image for task in tasks}
    left = [replace(task, after=tuple(sorted(_parents(config, task, names)))) for task in tasks]
    ordered: list[Task] = []
    while left:
        names = {task.image for task in left}
        free = [task for task in left if not names.intersection(task.after)]
        if not free:
            circle = ", ".join(sorted(names))
            raise ConfigError(f"{config.path}: these images are based on one another: {circle}")
        ordered += free
        left = [task for task in left if task not in free]
    return tuple(ordered)


def left_out(failed: ImageOutcome, waiting: Iterable[Task]) -> list[ImageOutcome]:
    """The outcomes of those of ``waiting`` (in order) that are based on what failed, also through others."""
    broken, found = {failed.task.image}, []
    for task in waiting:
        base = next((name for name in task.after if name in broken), None)
        if base is not None:
            broken.add(task.image)
            error = f"not run: {base}, which it is based on, failed"
            found.append(ImageOutcome(task=task, code=failed.code, answer={}, error=error, seconds=0.0))
    return found


def _parents(config: Config, task: Task, among: Iterable[str]) -> list[str]:
    """The images of ``among`` that ``task``'s image is based on."""
    if not config.registry.given:
        return []
    base = config.image(task.image).base.name
    return [name for name in among if name != task.image and config.registry.repository(name).name == base]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalExecutor:
    """Runs tasks on this machine, at most ``limit`` at the same time."""

    limit: int

    def run(self, tasks: Sequence[Task], done: Callable[[ImageOutcome], None]) -> None:
        """Run each of ``tasks`` as a child process; call ``done`` with each outcome.

        When this process is interrupted, the child processes are ended.
        """
        stop = threading.Event()
        waiting, running = {task.image: task for task in tasks}, set[Future[ImageOutcome]]()
        unfinished = set(waiting)

        def end(ended: ImageOutcome) -> None:
            unfinished.discard(ended.task.image)
            waiting.pop(ended.task.image, None)
            done(ended)

        # longer than process.run waits before it kills: no child process stays behind
        patience = process.TERM_GRACE + process.ORPHAN_GRACE + 1
        with Crew(min(self.limit, len(tasks)), name="image", patience=patience) as crew:
            try:
                while unfinished:
                    for task in [task for task in waiting.values() if unfinished.isdisjoint(task.after)]:
                        del waiting[task.image]
                        running.add(crew.submit(_run_here, task, stop))
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    for ended in (future.result() for future in finished):
                        end(ended)
                        for kept in left_out(ended, tuple(waiting.values())) if ended.code else ():
                            end(kept)
            except BaseException:
                stop.set()
                raise


def _run_here(task: Task, stop: threading.Event) -> ImageOutcome:
    start = time.monotonic()
    log.info("starts", name=task.image, version=task.version)
    try:
        ended = process.run(task.argv, cwd=task.folder, check=False, stop=stop)
        code, said, errors = ended.returncode, ended.stdout, ended.stderr
    except SqshpipeError as error:
        code, said, errors = error.exit_code, "", str(error)
    return outcome(task, code, said, errors, seconds=time.monotonic() - start)


def outcome(
    task: Task, code: int, said: str, errors: str, *, seconds: float, attempts: int = 1, where: str = ""
) -> ImageOutcome:
    """The outcome of ``task``, from what its finished process printed and its exit code."""
    try:
        answer = json.loads(said) if said.strip() else {}
    except ValueError:
        answer = {}
    return ImageOutcome(
        task=task,
        code=code if code >= 0 else 128 - code,
        answer=answer if isinstance(answer, dict) else {},
        error="" if code == 0 else _last_words(errors) or f"ended with {code} without a word",
        seconds=seconds,
        attempts=attempts,
        where=where,
    )


def _last_words(errors: str) -> str:
    """The sentence with which a child process ended, with its hint; otherwise its last lines."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    ours = [number for number, line in enumerate(lines) if line.startswith(_OURS)]
    last = lines[ours[-1] :] if ours else lines[-_LAST_LINES:]
    return "\n".join(last).removeprefix(_OURS)
