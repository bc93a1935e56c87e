"""Images as tasks of Slurm job arrays: one array for each set of demands, followed to the end.

What a task prints lies in a folder that the nodes share. A task that ended without having written its exit
code was lost with its node (or stopped by Slurm); a lost one goes to another node. An image that is based on
another is submitted at once, with a dependency on that one's task.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

from pipeline.batch.local import ImageOutcome, Task, left_out, outcome
from pipeline.config.types import SlurmSettings
from pipeline.errors import ToolError
from pipeline.slurm import array as slurm_array
from pipeline.slurm.array import TaskState
from pipeline.system.log import log

_ATTEMPTS = 3
_SILENCE = 600.0  # seconds that the controller may not answer: it restarts now and then


@dataclass(slots=True, kw_only=True)
class _Running:
    """One task on its way."""

    task: Task
    index: int
    started: float
    attempts: int = 0
    job: str = ""
    avoid: list[str] = field(default_factory=list)
    gone_since: float | None = None

    @property
    def name(self) -> str:
        """What Slurm calls it."""
        return f"{self.job}_{self.index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmExecutor:
    """Runs tasks on the cluster.

    ``shared`` is a folder that all nodes see. ``limit`` is how many tasks of one array run at once; None:
    no limit. Slurm is asked every ``poll`` seconds. An exit code that a node wrote may need up to
    ``settle`` seconds until it can be read here over NFS or Lustre.
    """

    shared: Path
    limit: int | None = None
    poll: float = 5.0
    settle: float = 15.0
    sleep: Callable[[float], None] = time.sleep

    def run(self, tasks: Sequence[Task], done: Callable[[ImageOutcome], None]) -> None:
        """Submit, follow and collect all ``tasks``.

        When this process is interrupted, the tasks that have not ended are cancelled. Raises ToolError when
        Slurm refuses the tasks or does not answer.
        """
        self.shared.mkdir(parents=True, exist_ok=True)
        folder = Path(mkdtemp(prefix="batch-", dir=self.shared))
        now = time.monotonic()
        running = {
            index: _Running(task=task, index=index, started=now) for index, task in enumerate(tasks, start=1)
        }
        for one in running.values():
            _write_task(folder, one)
        try:
            self._submit(folder, list(running.values()), running)
            self._follow(folder, running, done)
        finally:
            for job in {one.job for one in running.values() if one.job}:
                with contextlib.suppress(ToolError):
                    slurm_array.cancel(job)

    def _submit(self, folder: Path, wanted: Sequence[_Running], running: dict[int, _Running]) -> None:
        """Submit ``wanted``, which stand behind those that they are based on; alike ones become one array."""
        left = list(wanted)
        while left:
            names = {one.task.image for one in left}
            free = [one for one in left if names.isdisjoint(one.task.after)]
            left = [one for one in left if one not in free]
            groups: dict[tuple[SlurmSettings, str, tuple[str, ...]], list[_Running]] = {}
            for one in free:
                key = one.task.slurm, ",".join(one.avoid), _bases(one, running)
                groups.setdefault(key, []).append(one)
            for (settings, avoid, after), members in groups.items():
                self._submit_array(folder, members, settings, avoid, after)

    def _submit_array(
        self,
        folder: Path,
        members: Sequence[_Running],
        settings: SlurmSettings,
        avoid: str,
        after: tuple[str, ...],
    ) -> None:
        script, indices = folder / "array.sh", [one.index for one in members]
        try:
            job = slurm_array.submit(script, indices, settings, self.limit, exclude=avoid, after=after)
        except ToolError:
            if not avoid:
                raise
            # There may be no other node: the lost one will come back.
            job = slurm_array.submit(script, indices, settings, self.limit, after=after)
        for one in members:
            one.job, one.gone_since = job, None
            one.attempts += 1
        behind = {"after": " ".join(after)} if after else {}
        log.info("submitted", job=job, images=len(members), **behind)

    def _follow(
        self, folder: Path, running: dict[int, _Running], done: Callable[[ImageOutcome], None]
    ) -> None:
        silent_since: float | None = None
        while running:
            try:
                states = {job: slurm_array.states(job) for job in {one.job for one in running.values()}}
                silent_since = None
            except ToolError:
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > _SILENCE:
                    raise
                log.warning("Slurm does not answer, asking again")
                self.sleep(self.poll)
                continue
            again = []
            for index, one in list(running.items()):
                if index not in running:
                    continue  # left out meanwhile
                state = states[one.job].get(index)
                ended = self._ended(folder, one, state)
                if ended is not None:
                    self._end(ended, running, done)
                elif state is not None and state.lost and one.gone_since is not None:
                    again.append(self._elsewhere(one, state))
            if again:
                self._submit(folder, again, running)
            self._lead_on(running, states)
            if running:
                self.sleep(self.poll)

    def _end(
        self, ended: ImageOutcome, running: dict[int, _Running], done: Callable[[ImageOutcome], None]
    ) -> None:
        """Report ``ended``; tasks that are based on a failed one are cancelled and reported too."""
        numbers = {one.task.image: index for index, one in running.items()}
        del running[numbers[ended.task.image]]
        done(ended)
        for kept in left_out(ended, [one.task for one in running.values()]) if ended.code else ():
            with contextlib.suppress(ToolError):
                slurm_array.cancel(running.pop(numbers[kept.task.image]).name)
            done(kept)

    def _lead_on(self, running: dict[int, _Running], states: Mapping[str, Mapping[int, TaskState]]) -> None:
        """Let tasks whose base was lost wait for that one's next attempt."""
        stranded = {}
        for index, one in running.items():
            state = states.get(one.job, {}).get(index)
            if state is not None and state.stranded:
                stranded[one.job] = _bases(one, running)
        for job, after in stranded.items():
            with contextlib.suppress(ToolError):  # it is tried again, or ends
                slurm_array.wait_for(job, after)

    def _ended(self, folder: Path, one: _Running, state: TaskState | None) -> ImageOutcome | None:
        """The outcome, once there is one: an exit code that was written, or an end without one."""
        seconds = time.monotonic() - one.started
        node = state.node if state else ""
        code = _read(folder / f"{one.index}.rc").strip()
        if code.lstrip("-").isdigit():
            said, errors = _read(folder / f"{one.index}.json"), _read(folder / f"{one.index}.log")
            return outcome(
                one.task, int(code), said, errors, seconds=seconds, attempts=one.attempts, where=node
            )
        if state is not None and not state.ended:
            one.gone_since = None
            return None
        one.gone_since = one.gone_since or time.monotonic()
        if state is not None and state.lost:
            if one.attempts < _ATTEMPTS:
                return None
        elif time.monotonic() - one.gone_since < self.settle:
            return None
        why = _why(one, state)
        return outcome(
            one.task, ToolError.exit_code, "", why, seconds=seconds, attempts=one.attempts, where=node
        )

    def _elsewhere(self, one: _Running, state: TaskState) -> _Running:
        if state.node and state.node not in one.avoid:
            one.avoid.append(state.node)
        log.warning(
            "lost with its node, goes elsewhere", name=one.task.image, node=state.node, state=state.state
        )
        return one


def _bases(one: _Running, running: dict[int, _Running]) -> tuple[str, ...]:
    """Slurm's names (JOB_INDEX) of the running tasks that ``one`` has to wait for."""
    return tuple(other.name for other in running.values() if other.task.image in one.task.after)


def _why(one: _Running, state: TaskState | None) -> str:
    if state is None:
        return f"Slurm no longer knows job {one.job}, task {one.index}, and it left no result"
    hint = {
        "TIMEOUT": "; give it more time: slurm: {time: …} in images.yaml",
        "OUT_OF_MEMORY": "; give it more memory: slurm: {memory: …} in images.yaml",
    }.get(state.state, "")
    where = f" on {state.node}" if state.node else ""
    return f"Slurm ended job {one.job}, task {one.index}{where}: {state.state} (attempt {one.attempts}){hint}"


def _write_task(folder: Path, one: _Running) -> None:
    """The task's own script, and once the array's, which finds it by number.

    A second attempt starts clean; the exit code is written last and appears whole.
    """
    number = one.index
    place = shlex.quote(str(folder))
    script = folder / f"{number}.sh"
    script.write_text(
        "#!/bin/sh\n"
        f"cd {shlex.quote(str(one.task.folder))} || exit 3\n"
        f"{shlex.join(one.task.argv)} >{place}/{number}.json 2>{place}/{number}.log </dev/null\n"
        f"code=$?\n"
        f"echo $code >{place}/{number}.part && mv {place}/{number}.part {place}/{number}.rc\n"
        "exit $code\n"
    )
    script.chmod(0o755)
    array = folder / "array.sh"
    if not array.exists():
        array.write_text(f'#!/bin/sh\nexec {place}/"$SLURM_ARRAY_TASK_ID".sh\n')


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
