"""The life of a store in a loop, with faults: python -m tests.soak --seconds 300 --faults kill,full --seed 7

Each turn publishes a version, promotes it, lets a job take and give back a release through the importer, and
now and then prunes, scrubs, rolls back and yanks. Each action runs in a process of its own, into which a
fault is injected at random: killed or signalled at a random moment, a system call that fails, a clock that is
an hour off. Then the same action runs undisturbed, as a person would run it again, and must end well.

After each turn what was acknowledged must be there with its bytes, and nothing may be half there; a reader
looks all the while. Prints one line of JSON: turns, actions, faults that were injected and that took effect,
releases lost, partial results. Exit code 0 when both are zero.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from pipeline.errors import SqshpipeError
from pipeline.node import pyxis_importer
from pipeline.store import prune, scrub
from pipeline.store.reading import load
from pipeline.store.retention import LiveJobs, Policy
from pipeline.store.store import Store
from tests.support.store import invariants
from tests.support.store.handmade_store import squashfs_like
from tests.support.store.releases import new_store, record_for

SYSTEM_CALLS = ("write", "fsync", "link", "replace", "rename", "symlink", "open", "unlink", "fchmod", "stat")
ERRORS = {
    "full": errno.ENOSPC,
    "quota": errno.EDQUOT,
    "eio": errno.EIO,
    "stale": errno.ESTALE,
    "readonly": errno.EROFS,
}
FAULTS = ("kill", "term", "int", *ERRORS, "clock")
POLICY = Policy(keep=4, named_grace=timedelta(0), delete_after=timedelta(0))
_FORESEEN = (0, 2, 3, 7, 8, 130, 143)
_OURS = {signal.SIGINT, signal.SIGTERM}
_PARTIAL, _UNFORESEEN = 90, 91


class Terminated(BaseException):
    """SIGTERM, as the command line raises it."""


class Soak:
    """One store and everything that must be true of it."""

    def __init__(self, root: Path, faults: tuple[str, ...], seed: int) -> None:
        self.root = root
        self.faults = faults
        self.random = random.Random(seed)
        self.store = new_store(root)
        self.acknowledged: dict[str, bytes] = {}
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.longest = 0.02

    def turn(self, number: int) -> None:
        """One turn of the loop."""
        version = f"v{number // 100}.{number % 100}"
        content = squashfs_like(f"{version} {self.random.random()}", self.random.randrange(200, 300_000))
        if self.twice("publish", lambda store: publish(store, version, content)):
            self.acknowledged[version] = content
        self.twice("promote", lambda store: store.promote(f"demo:{version}", "stable"))
        self.twice("get", lambda store: take(store, number))
        if number % 3 == 0:
            self.twice(
                "prune",
                lambda store: prune.prune(
                    store.layout, POLICY, lambda: LiveJobs(cluster="c", ids=frozenset({str(number)}))
                ),
            )
        if number % 5 == 0:
            self.twice("scrub", lambda store: scrub.scrub(store.layout))
        if number % 7 == 0:
            self.twice("rollback", lambda store: store.rollback("demo", "stable"))
        if number % 11 == 0:
            self.twice("yank", lambda store: store.mark(f"demo:{version}", "yank"))
        if number % 13 == 0:
            self.twice("rebuild", lambda store: store.rebuild())
        self.twice("release", lambda store: give_back(store, number))
        self.check(f"turn {number}")

    def twice(self, name: str, action: Callable[[Store], object]) -> bool:
        """The action with a fault, then without; True when it is known to be done."""
        if self.faults and self.random.random() < 0.7:
            fault = self.random.choice(self.faults)
            code = self.child(name, action, fault)
            self.counts[f"injected {fault}"] += 1
            self.counts[f"took effect {fault}"] += code != 0
        code = self.child(name, action, "")
        self.counts["actions"] += 1
        if code:
            self.problems.append(f"{name} without a fault ends with {code}")
        return not code

    def child(self, name: str, action: Callable[[Store], object], fault: str) -> int:
        """Run the action in a process of its own; gives its exit code, negative for a signal."""
        seed = self.random.randrange(1 << 30)
        started = time.monotonic()
        signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)
        child = os.fork()
        if child == 0:
            code = _UNFORESEEN
            try:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)
                code = _run(action, self.root, fault, seed)
            except KeyboardInterrupt:  # before the action has begun, or while it is ended already
                code = 130
            except Terminated:
                code = 143
            finally:
                os._exit(code)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)
        if fault in ("kill", "term", "int"):
            time.sleep(self.random.random() * self.longest)
            number = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}[fault]
            os.kill(child, number)
            if fault == "int" and self.random.random() < 0.5:  # an impatient person
                os.kill(child, number)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if not fault:
            self.longest = 0.9 * self.longest + 0.1 * (time.monotonic() - started)
        if code in (_PARTIAL, _UNFORESEEN) or (code not in _FORESEEN and code >= 0):
            self.problems.append(f"{name} under {fault or 'no fault'} ends with {code}")
        return code

    def check(self, when: str) -> None:
        """Everything acknowledged is there, or pruned by the policy; all that is seen is whole."""
        try:
            invariants.check(self.store, self.acknowledged)
        except AssertionError as error:
            self.counts["partial"] += 1
            self.problems.append(f"{when}: {error}")
        state = load(self.store.layout, "demo").state
        for version in self.acknowledged:
            standing = state.releases.get(version)
            if standing is None:
                self.counts["lost"] += 1
                self.problems.append(f"{when}: {version} is lost")
        kept = [version for version, standing in state.newest_first() if standing.resolvable()]
        if len(kept) < min(POLICY.keep - 1, len(self.acknowledged) // 2):  # one may just have been yanked
            self.counts["lost"] += 1
            self.problems.append(f"{when}: only {kept} are left")


def publish(store: Store, version: str, content: bytes) -> None:
    with store.staging() as staged:
        staged.write_bytes(content)
        created = time.strftime(
            "2026-01-01T%H:%M:%SZ",
            time.gmtime(int(version.partition(".")[2]) + 100 * int(version[1:].partition(".")[0])),
        )
        store.publish(record_for(content, version, created=created), staged)


def take(store: Store, number: int) -> None:
    """What a node does when a job starts: a path, whose bytes must be those of the record."""
    os.environ["SLURM_JOB_ID"], os.environ["SLURM_STEP_ID"] = str(number), "0"
    os.environ["SLURM_CLUSTER_NAME"] = "c"
    settings = pyxis_importer.Settings({"schema": 1, "store": str(store.root)})
    try:
        path = Path(pyxis_importer.get(settings, "docker://demo:latest"))
    except pyxis_importer.Refused as error:
        raise SqshpipeError(str(error)) from None
    if hashlib.sha256(path.read_bytes()).hexdigest() != path.stem:
        os._exit(_PARTIAL)


def give_back(store: Store, number: int) -> None:
    os.environ["SLURM_JOB_ID"], os.environ["SLURM_STEP_ID"] = str(number), "0"
    pyxis_importer.release(pyxis_importer.Settings({"schema": 1, "store": str(store.root)}))


def _run(action: Callable[[Store], object], root: Path, fault: str, seed: int) -> int:
    def terminated(_number: int, _frame: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminated)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if fault:
        os.dup2(1, 2)
    if fault in ERRORS:
        _fail_one_call(ERRORS[fault], random.Random(seed))
    elif fault == "clock":
        now, jump = time.time, random.Random(seed).choice((-3600, 3600))
        time.time = lambda: now() + jump
    try:
        action(Store(root))
    except SqshpipeError as error:
        if not fault:
            sys.stderr.write(f"{error}\n")
        return error.exit_code if error.exit_code != 1 else 2
    except KeyboardInterrupt:
        return 130
    except Terminated:
        return 143
    except OSError as error:
        # the importer reports an OSError by itself
        return 3 if fault else _report_traceback(error)
    except BaseException as error:  # noqa: BLE001 - whatever it is, nobody foresaw it
        return _report_traceback(error)
    return 0


def _report_traceback(error: BaseException) -> int:
    import traceback

    traceback.print_exception(error)
    return _UNFORESEEN


def _fail_one_call(code: int, chance: random.Random) -> None:
    """The n-th call of one function of os fails with `code`; at a full disk only what needs room does."""
    needs_room = code in (errno.ENOSPC, errno.EDQUOT)
    name = chance.choice(("write", "fsync", "link", "symlink", "open") if needs_room else SYSTEM_CALLS)
    real, left = getattr(os, name), [chance.randrange(8)]

    def failing(*arguments: Any, **more: Any) -> Any:
        left[0] -= 1
        if left[0] == -1:
            raise OSError(code, os.strerror(code), str(arguments[0]))
        return real(*arguments, **more)

    setattr(os, name, failing)


def _read_on(root: Path, stop: Path) -> int:
    """Look at the store as a node does until `stop` is there; gives 0 unless something was half there."""
    store, looks = Store(root), 0
    while not stop.exists():
        time.sleep(0.005)
        for name in ("demo", "demo:stable"):
            try:
                release = store.resolve(name)
                data = release.path.read_bytes()
            except (SqshpipeError, FileNotFoundError):
                continue  # not published yet, or pruned between the two
            if hashlib.sha256(data).hexdigest() != release.sha256:
                return 1
            looks += 1
    stop.with_name("looks").write_text(str(looks))
    return 0


def soak(root: Path, *, seconds: float, faults: tuple[str, ...] = FAULTS, seed: int = 0) -> dict[str, Any]:
    """Turn for `seconds` on a new store at `root`/store; gives the figures."""
    life = Soak(root / "store", faults, seed)
    stop = root / "stop"
    life.turn(1)
    reader = os.fork()
    if reader == 0:
        os._exit(_read_on(life.root, stop))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    until, number = time.monotonic() + seconds, 1
    while time.monotonic() < until and not life.problems:
        number += 1
        life.turn(number)
    stop.touch()
    _, status = os.waitpid(reader, 0)
    counts = life.counts
    if status:
        counts["partial"] += 1
        life.problems.append("the reader saw something half")
    prune.prune(life.store.layout, POLICY, prune.no_jobs)
    left = [str(path) for path in prune.temporaries(life.store.layout)]
    return {
        "seed": seed,
        "turns": number,
        "actions": counts["actions"],
        "faults injected": {fault: counts[f"injected {fault}"] for fault in faults},
        "faults that took effect": sum(counts[f"took effect {fault}"] for fault in faults),
        "looks of the reader": int((root / "looks").read_text()) if not status else 0,
        "lost": counts["lost"],
        "partial": counts["partial"],
        "temporary files left": len(left),
        "descriptors more": len(os.listdir("/proc/self/fd")) - before,  # noqa: PTH208
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "problems": life.problems[:20],
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument(
        "--faults", default=",".join(FAULTS), help="any of " + ", ".join(FAULTS) + ", or none"
    )
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--folder", type=Path, help="on which file system; a temporary folder if left out")
    given = parser.parse_args()
    faults = tuple(name for name in given.faults.split(",") if name and name != "none")
    if unknown := set(faults) - set(FAULTS):
        parser.error(f"unknown faults: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="sqshpipe-soak-", dir=given.folder) as folder:
        figures = soak(Path(folder), seconds=given.seconds, faults=faults, seed=given.seed)
    print(json.dumps(figures))  # noqa: T201 - the result
    return bool(figures["problems"])


if __name__ == "__main__":
    sys.exit(main())
