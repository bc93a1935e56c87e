"""Images as tasks of job arrays on a real Slurm: limits, failures, a node that dies in the middle."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from pipeline.batch.local import ImageOutcome, Task
from pipeline.batch.slurm import SlurmExecutor
from pipeline.config.types import SlurmSettings
from pipeline.errors import ToolError
from tests.support.servers import slurm
from tests.support.servers.slurm import Slurm

pytestmark = pytest.mark.needs("slurmctld", "slurmd", "sbatch")
ONE = SlurmSettings(cpus=1, time=timedelta(minutes=2))


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    with slurm.private_slurm(tmp_path / "slurm", nodes=2, cpus=4) as running:
        for name, value in running.env.items():
            monkeypatch.setenv(name, value)
        yield running


def task(name: str, script: str, tmp_path: Path, settings: SlurmSettings = ONE, *, after: str = "") -> Task:
    argv, bases = ("/bin/sh", "-c", script), (after,) if after else ()
    return Task(image=name, version="v1", argv=argv, folder=tmp_path, slurm=settings, after=bases)


def run(tmp_path: Path, tasks: list[Task], limit: int | None = None) -> dict[str, ImageOutcome]:
    found: dict[str, ImageOutcome] = {}
    executor = SlurmExecutor(shared=tmp_path / "shared", limit=limit, poll=0.3, settle=1.0)
    executor.run(tasks, lambda outcome: found.update({outcome.task.image: outcome}))
    return found


def assert_nothing_left(cluster: Slurm) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and cluster.run(["squeue", "-h", "-o", "%i"]).stdout.strip():
        time.sleep(0.2)
    assert cluster.run(["squeue", "-h", "-o", "%i"]).stdout.strip() == ""


def test_results_failures_and_demands(cluster: Slurm, tmp_path: Path) -> None:
    tasks = [
        task("good", """echo '{"path": "/s/good.sqsh"}'""", tmp_path),
        task(
            "asks",
            """echo "{\\"path\\": \\"$(squeue -h -j $SLURM_JOB_ID -o '%l %C')\\"}" """,
            tmp_path,
            SlurmSettings(cpus=3, time=timedelta(minutes=7)),
        ),
        task("bad", "echo 'sqshpipe: a step failed' >&2; exit 3", tmp_path),
        task("slow", "exec sleep 300", tmp_path, SlurmSettings(cpus=2, time=timedelta(minutes=5))),
    ]
    words = ["scancel", "--name=sqshpipe", "--state=RUNNING"]
    slow = threading.Timer(4, lambda: cluster.run(words))
    slow.start()
    try:
        found = run(tmp_path, tasks)
    finally:
        slow.cancel()
    assert (found["good"].path, found["good"].code) == ("/s/good.sqsh", 0)
    assert found["asks"].path == "7:00 3"  # time limit and processors, as images.yaml says
    assert (found["bad"].code, found["bad"].error) == (3, "a step failed")
    # Slurm may end the step first, which then says so itself, or the job with it.
    assert found["slow"].code in (ToolError.exit_code, 143)
    assert "CANCELLED" in found["slow"].error or found["slow"].code == 143
    assert found["good"].where in cluster.nodes


@pytest.mark.slow  # test_many_images does it with real conversions
def test_eight_images_with_a_node_killed_in_the_middle(cluster: Slurm, tmp_path: Path) -> None:
    script = 'sleep 3; echo "{\\"path\\": \\"$SLURMD_NODENAME\\"}"'
    tasks = [task(f"image{number}", script, tmp_path) for number in range(8)]
    started = time.monotonic()

    def kill() -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            shown = cluster.run(["squeue", "-h", "-r", "-t", "RUNNING", "-o", "%N"], check=False).stdout
            if "n2" in shown:
                cluster.kill_node("n2")
                return
            time.sleep(0.1)

    killer = threading.Thread(target=kill)
    killer.start()
    found = run(tmp_path, tasks)
    killer.join()
    assert {outcome.code for outcome in found.values()} == {0}
    assert len(found) == 8
    assert {outcome.path for outcome in found.values()} <= {"n1", "n2"}
    again = [outcome for outcome in found.values() if outcome.attempts > 1]
    assert again
    assert {outcome.path for outcome in again} == {"n1"}
    assert time.monotonic() - started < 90


def test_an_image_waits_for_its_own_base_alone(cluster: Slurm, tmp_path: Path) -> None:
    """`slow` ends only when `child` has run; what is based on `broken` never runs."""
    said = 'echo "{\\"path\\": \\"$(cat base)\\"}"'
    tasks = [
        task("slow", "until [ -e child ]; do sleep 0.1; done", tmp_path),
        task("base", "sleep 2; echo made >base", tmp_path),
        task("broken", "exit 7", tmp_path),
        task("child", f"{said}; touch child", tmp_path, after="base"),
        task("orphan", "touch orphan", tmp_path, after="broken"),
        task("heir", "touch heir", tmp_path, after="orphan"),
    ]
    found = run(tmp_path, tasks)
    assert {name: one.code for name, one in found.items() if one.code} == {
        "broken": 7,
        "orphan": 7,
        "heir": 7,
    }
    assert found["child"].path == "made"
    assert found["heir"].error == "not run: orphan, which it is based on, failed"
    assert not (tmp_path / "orphan").exists()
    assert not (tmp_path / "heir").exists()
    assert_nothing_left(cluster)


@pytest.mark.slow  # half a minute until Slurm notices; test_many_images has a node that dies in each run
def test_what_waits_for_a_base_whose_node_dies_waits_for_its_next_attempt(
    cluster: Slurm, tmp_path: Path
) -> None:
    first = "[ -e began ] && touch base || { echo $SLURMD_NODENAME >began; exec sleep 300; }"
    tasks = [
        task("base", first, tmp_path),
        task("child", "[ -e base ] && touch child", tmp_path, after="base"),
        task(
            "grandchild",
            '[ -e child ] && echo "{\\"path\\": \\"$SLURMD_NODENAME\\"}"',
            tmp_path,
            after="child",
        ),
    ]
    lost = ""

    def kill() -> None:
        nonlocal lost
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not lost:
            time.sleep(0.2)
            lost = (tmp_path / "began").read_text().strip() if (tmp_path / "began").exists() else ""
        cluster.kill_node(lost)

    killer = threading.Thread(target=kill)
    killer.start()
    found = run(tmp_path, tasks)
    killer.join()
    assert {name: one.code for name, one in found.items()} == {"base": 0, "child": 0, "grandchild": 0}
    assert {name: one.attempts for name, one in found.items()} == {"base": 2, "child": 1, "grandchild": 1}
    assert found["grandchild"].path == ({"n1", "n2"} - {lost}).pop()


def test_refused_demands_are_reported_at_once(cluster: Slurm, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="sbatch"):
        run(tmp_path, [task("big", "true", tmp_path, SlurmSettings(partition="nowhere"))])


def test_an_interrupt_cancels_what_is_left(cluster: Slurm, tmp_path: Path) -> None:
    class Stop(BaseException):
        pass

    def interrupt(_: float) -> None:
        raise Stop

    executor = SlurmExecutor(shared=tmp_path / "shared", poll=0.1, sleep=interrupt)
    with pytest.raises(Stop):
        executor.run([task("slow", "exec sleep 60", tmp_path)], lambda _: None)
    assert_nothing_left(cluster)


def test_scripts_survive_any_folder_name(cluster: Slurm, tmp_path: Path) -> None:
    odd = tmp_path / "it's a $folder"
    odd.mkdir()
    found = run(odd, [task("a", json.dumps({"path": "x"}).join(("echo '", "'")), odd)])
    assert found["a"].path == "x"
