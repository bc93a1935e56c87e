"""Any machine may die at any moment: each action killed, and failed, at each of its calls in turn."""

from __future__ import annotations

import contextlib
import difflib
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.store import leases, prune
from pipeline.store.index import write_index
from pipeline.store.reading import load
from pipeline.store.store import Store
from tests.support.faults import crash, crash_actions
from tests.support.store import invariants
from tests.support.store.releases import new_store, publish

CONTENTS = {version: version.encode() for version in ("v0.9", "v1.0", "v1.1", "v1.2", "v1.3")}
SHORT = 40
"""About how many points of each action are tried without --slow."""
WORKERS = 2
FORESEEN = (0, 3, 7, 8)
"""Exit codes of an action whose call failed: repaired, no space, damaged bytes, refused."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which there is something to do for every action."""
    folder = tmp_path_factory.mktemp("prepared")
    store = new_store(folder / "store")
    for version in ("v0.9", "v1.0", "v1.1"):
        publish(store, version)
    for version in ("v0.9", "v1.0"):  # hidden: one that is leased, one to delete
        store.mark(f"demo:{version}", "yank")
    leases.take(store.layout, store.releases("demo")[-1], seconds=3600)
    publish(store, "v1.2")
    policy = crash_actions.ALL_OLD
    store.mark("demo:v1.1", "keep")
    prune.prune(store.layout, policy, prune.no_jobs)
    store.mark("demo:v1.1", "unkeep")
    (folder / "source").write_bytes(b"v1.3")
    return folder


def final_state(root: Path) -> list[str]:
    """What is true, without the moments at which it became true."""
    state = load(Store(root).layout, "demo").state
    for standing in state.releases.values():
        standing.hidden_at = standing.hidden_at and "then"
        standing.named_until = standing.named_until and "then"
        standing.reason = standing.reason.partition("hidden since")[0]
    state.events, state.newest_event = 0, ""
    return write_index(state).decode().splitlines()


@pytest.mark.needs("strace")
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("action", list(crash_actions.ACTIONS))
def test_killed_or_failed_at_every_call(
    action: str,
    prepared: Path,
    tmp_path: Path,
    pytestconfig: pytest.Config,
    capsys: pytest.CaptureFixture[str],
) -> None:
    slow = bool(pytestconfig.getoption("--slow"))
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(prepared, undisturbed, symlinks=True)
    with contextlib.closing(crash.Nursery()) as nursery:
        found = crash.calls(nursery, action, undisturbed / "store", tmp_path / "log")
    crash_actions.ACTIONS[action](new_store(undisturbed / "store"))  # what a prune hid, the next one deletes
    wanted = final_state(undisturbed / "store")
    chosen = list(crash.points(found, everything=slow))
    chosen = chosen if slow else chosen[:: 1 + len(chosen) // SHORT]
    started = time.monotonic()

    def attempt(worker: int) -> list[str]:
        problems = []
        with contextlib.closing(crash.Nursery()) as nursery:
            for number in range(worker, len(chosen), WORKERS):
                place = tmp_path / str(number)
                shutil.copytree(prepared, place, symlinks=True)
                problems.append(judge(nursery, place, chosen[number], action, wanted))
                shutil.rmtree(place)
        return [problem for problem in problems if problem]

    with ThreadPoolExecutor(WORKERS) as pool:
        failures = [problem for problems in pool.map(attempt, range(WORKERS)) for problem in problems]
    with capsys.disabled():
        kills = sum(point.fault == "KILL" for point in chosen)
        print(  # noqa: T201 - the number of points is part of the result
            f"\n{action}: {len(found)} calls, {kills} kills and {len(chosen) - kills} errors tried, "
            f"{len(failures)} failures, {time.monotonic() - started:.0f} s"
        )
    assert len(chosen) >= SHORT // 2
    assert not failures, "\n".join(failures[:10])


def judge(nursery: crash.Nursery, place: Path, point: crash.Point, action: str, wanted: list[str]) -> str:
    """What is wrong after a fault at `point`, or nothing."""
    root = place / "store"
    done = crash.run_with(nursery, point, action, root)
    store = Store(root)
    expected = (-9,) if point.fault == "KILL" else FORESEEN
    if done.returncode not in expected:
        return f"{point}: exit {done.returncode}: {done.stderr[-600:]}"
    steps: list[tuple[str, Callable[[], object]]] = [
        ("after the fault", lambda: invariants.check(store, CONTENTS)),
        ("the copy after the fault", lambda: invariants.check(new_store(place / "copy"), CONTENTS)),
        ("the next run", lambda: crash_actions.ACTIONS[action](store)),
        ("a third run", lambda: crash_actions.ACTIONS[action](store)),
        ("after these runs", lambda: invariants.check(store, CONTENTS)),
        ("the copy after these runs", lambda: invariants.check(new_store(place / "copy"), CONTENTS)),
        ("its result", lambda: same(final_state(root), wanted)),
        ("clearing up", lambda: prune.prune(store.layout, crash_actions.ALL_OLD, prune.no_jobs)),
        ("what is left over", lambda: same([str(path) for path in prune.temporaries(store.layout)], [])),
        ("at the end", lambda: invariants.check(store, CONTENTS)),
    ]
    name = ""
    try:
        for name, step in steps:  # noqa: B007 - says which step failed
            step()
    except Exception as error:  # noqa: BLE001 - whatever it is, it belongs into the list of failures
        return f"{point}: {name}: {type(error).__name__}: {error}"
    return ""


def same(left: list[str], right: list[str]) -> None:
    assert left == right, "\n".join(difflib.unified_diff(right, left, lineterm=""))
