"""Many images: who waits for whom, what a failure costs, how many run at once, and what each is given."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pipeline.batch.local import (
    ImageOutcome,
    LocalExecutor,
    Task,
    in_order,
    left_out,
    outcome,
    run,
    tasks_for,
)
from pipeline.config.reading import load
from pipeline.config.types import Config
from pipeline.errors import ConfigError

# `child` and `aunt` are based on `parent`, `grandchild` on `child`; `alone` on somebody else's image.
IMAGES = """\
version: 1
registry: {url: 127.0.0.1:5000/team, plain_http: true}
store: {root: /store}
defaults: {slurm: {cpus: 3, time: 90m}}
images:
  grandchild: {base: '127.0.0.1:5000/team/child:v1'}
  alone: {base: 'debian:12', slurm: {cpus: 8, memory: 64G}}
  child: {base: '127.0.0.1:5000/team/parent:v1'}
  aunt: {base: '127.0.0.1:5000/team/parent:v1'}
  parent: {base: 'debian:12'}
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "images.yaml").write_text(IMAGES)
    return load(tmp_path / "images.yaml", environment={})


def all_tasks(config: Config) -> tuple[Task, ...]:
    return tasks_for(config, config.images.values(), lambda _: "v1")


class Recorder:
    """An executor that ends each task at once, some of them badly, and remembers in which order."""

    def __init__(self, broken: Sequence[str] = ()) -> None:
        self.broken = broken
        self.ran: list[Task] = []

    def run(self, tasks: Sequence[Task], done: Callable[[ImageOutcome], None]) -> None:
        waiting = list(tasks)
        while waiting:
            self.ran.append(waiting.pop(0))
            ended = outcome(self.ran[-1], 7 if self.ran[-1].image in self.broken else 0, "", "", seconds=1.0)
            done(ended)
            for kept in left_out(ended, waiting) if ended.code else ():
                waiting.remove(kept.task)
                done(kept)


def test_an_image_runs_after_those_that_it_is_based_on(config: Config) -> None:
    executor = Recorder()
    outcomes = run(config, all_tasks(config), executor, done=lambda _: None)
    assert [task.image for task in executor.ran] == ["alone", "parent", "child", "aunt", "grandchild"]
    assert {task.image: task.after for task in executor.ran} == {
        "alone": (),
        "parent": (),
        "child": ("parent",),
        "aunt": ("parent",),
        "grandchild": ("child",),
    }
    assert [one.task.image for one in outcomes] == list(config.images)
    # Without its base among the tasks an image waits for nobody.
    only = [task for task in all_tasks(config) if task.image in ("grandchild", "aunt")]
    assert {task.image: task.after for task in in_order(config, only)} == {"grandchild": (), "aunt": ()}
    assert run(config, (), Recorder(), done=lambda _: None) == ()


def test_what_is_based_on_a_failure_is_not_run_and_says_why(config: Config) -> None:
    executor, reported = Recorder(broken=["parent"]), []
    outcomes = {one.task.image: one for one in run(config, all_tasks(config), executor, done=reported.append)}
    assert {name: one.code for name, one in outcomes.items()} == {
        **dict.fromkeys(("parent", "child", "aunt", "grandchild"), 7),
        "alone": 0,
    }
    assert outcomes["grandchild"].error == "not run: child, which it is based on, failed"
    assert [task.image for task in executor.ran] == ["alone", "parent"]
    assert len(reported) == 5


def test_here_an_image_waits_for_its_own_base_alone(tmp_path: Path) -> None:
    """`slow` ends only when `child` has run: were there levels, neither would ever end."""
    mark = tmp_path / "mark"
    until = f"import pathlib, time\nwhile not pathlib.Path({str(mark)!r}).exists(): time.sleep(0.05)"

    def made(name: str, text: str, *after: str) -> Task:
        argv = (sys.executable, "-c", text)
        return Task(image=name, version="v1", argv=argv, folder=tmp_path, after=after)

    found: dict[str, ImageOutcome] = {}
    tasks = [
        made("slow", until),
        made("base", "pass"),
        made("broken", "raise SystemExit(5)"),
        made("child", f"open({str(mark)!r}, 'w')", "base"),
        made("orphan", "pass", "broken"),
        made("heir", "pass", "orphan"),
    ]
    LocalExecutor(limit=3).run(tasks, lambda one: found.update({one.task.image: one}))
    assert {name: one.code for name, one in found.items() if one.code} == {
        "broken": 5,
        "orphan": 5,
        "heir": 5,
    }
    assert found["heir"].error == "not run: orphan, which it is based on, failed"
    assert list(found).index("child") > list(found).index("base")


def test_images_in_a_circle_are_refused(tmp_path: Path) -> None:
    text = IMAGES.replace("parent: {base: 'debian:12'}", "parent: {base: '127.0.0.1:5000/team/child:v1'}")
    (tmp_path / "images.yaml").write_text(text)
    config = load(tmp_path / "images.yaml", environment={})
    with pytest.raises(ConfigError, match="based on one another: aunt, child, grandchild, parent"):
        in_order(config, all_tasks(config))


def test_each_task_gets_its_demands_and_what_overrides_the_file(config: Config) -> None:
    tasks = {task.image: task for task in all_tasks(config)}
    assert (tasks["child"].slurm.cpus, tasks["child"].slurm.time.total_seconds()) == (3, 5400)
    assert (tasks["alone"].slurm.cpus, tasks["alone"].slurm.memory) == (8, "64G")
    words = " ".join(tasks["child"].argv)
    assert "release child --tag v1 --json" in words
    assert "--store /store --registry http://127.0.0.1:5000/team" in words


def test_no_more_than_the_limit_run_at_once(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys, time\n"
        "mine = pathlib.Path(sys.argv[1]); mine.touch(); time.sleep(0.2)\n"
        "others = len(list(mine.parent.glob('*.running'))); mine.unlink()\n"
        'print(\'{"path": "%d"}\' % others)\n'
    )
    tasks = [
        Task(
            image=f"i{number}",
            version="v1",
            argv=(sys.executable, "-c", script, str(tmp_path / f"{number}.running")),
            folder=tmp_path,
        )
        for number in range(5)
    ]
    found: list[ImageOutcome] = []
    LocalExecutor(limit=2).run(tasks, found.append)
    assert {one.code for one in found} == {0}
    assert {int(one.path or 0) for one in found} <= {1, 2}


def test_an_interruption_ends_what_runs_and_starts_nothing_more(tmp_path: Path) -> None:
    class Interrupted(BaseException):
        pass

    def interrupt(_: ImageOutcome) -> None:
        raise Interrupted

    waits = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(120)"
    started = [tmp_path / f"started{number}" for number in range(3)]
    until = f"import pathlib, time\nwhile not pathlib.Path({str(started[0])!r}).exists(): time.sleep(0.05)"
    programs = [(until, ""), *((waits, str(marker)) for marker in started)]
    tasks = [
        Task(image=f"i{n}", version="v1", argv=(sys.executable, "-c", text, word), folder=tmp_path)
        for n, (text, word) in enumerate(programs)
    ]
    began = time.monotonic()
    with pytest.raises(Interrupted):
        LocalExecutor(limit=2).run(tasks, interrupt)
    assert time.monotonic() - began < 60
    assert not started[2].exists()
