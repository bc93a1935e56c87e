"""How long a look-up takes: one `get` alone, and 64 at once as when many steps start on one node.

    python -m bench.importer [--releases 200] [--rounds 5] [--json FILE]

Prints milliseconds (median, p99) and whether the project's goal is met: with 64 at once on two cores, p99 is
at most 3.5 times that of the same interpreter doing nothing (`python3 -IS -c pass`), which is measured in
turns with it. The 64 wait for one signal and each is timed from that signal, so the last waits for all: p99
is about 64 times the processor time of one, shared by the cores. Every `get` leaves a lease.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.node.install import ImporterSettings, install
from pipeline.store import leases
from pipeline.store.store import Store
from tests.support.store.handmade_store import squashfs_like
from tests.support.store.releases import new_store, record_for

AT_ONCE = 64
RATIO = 3.5
PYTHON = "/usr/bin/python3"
BARE = (PYTHON, "-IS", "-c", "pass")


@dataclass(slots=True)
class Row:
    """Milliseconds of wall time and of processor time, one a process."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """What is printed and kept."""
        found = {"median_ms": percentile(self.wall, 0.5), "p99_ms": percentile(self.wall, 0.99)}
        found["cpu_ms"] = sum(self.cpu) / len(self.cpu)
        return {name: round(value, 2) for name, value in found.items()}


def once(argv: Sequence[str], row: Row, job: int) -> None:
    """Start one process and wait for it."""
    began = time.perf_counter()
    null = (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)
    pid = os.posix_spawn(argv[0], argv, environment(job), file_actions=[null])
    _ended(row, began, {pid})


def together(argv: Sequence[str], row: Row, first_job: int) -> None:
    """Start 64 processes on one signal."""
    read, write = os.pipe()
    waiting = [
        subprocess.Popen(
            ["/bin/sh", "-c", f'read _ <&{read}; exec "$@"', "sh", *argv],
            env=environment(first_job + number),
            stdout=subprocess.DEVNULL,
            pass_fds=[read],
        )
        for number in range(AT_ONCE)
    ]
    os.close(read)
    time.sleep(0.5)
    began = time.perf_counter()
    os.close(write)
    _ended(row, began, {each.pid for each in waiting})
    for each in waiting:
        each.returncode = 0


def _ended(row: Row, began: float, left: set[int]) -> None:
    while left:
        pid, status, used = os.wait4(-1, 0)
        if pid in left:
            left.remove(pid)
            row.wall.append((time.perf_counter() - began) * 1e3)
            row.cpu.append((used.ru_utime + used.ru_stime) * 1e3)
            assert os.waitstatus_to_exitcode(status) == 0


def environment(job: int) -> dict[str, str]:
    return {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": "0"}


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def published(folder: Path, releases: int) -> Store:
    """A store with so many releases of one image."""
    store = new_store(folder / "store")
    store.create()
    for number in range(releases):
        data = squashfs_like(f"v{number}")
        with store.staging() as staged:
            staged.write_bytes(data)
            store.publish(record_for(data, f"v{number}"), staged)
    leases.prepare(store.layout)
    return store


def system_calls(argv: Sequence[str]) -> int | None:
    """How many system calls a process makes; None without strace."""
    if shutil.which("strace") is None:
        return None
    done = subprocess.run(
        ["strace", "-f", *argv], env=environment(1), capture_output=True, text=True, check=True
    )
    return len(done.stderr.splitlines())


def measure(program: str, rounds: int) -> dict[str, Row]:
    """All rows, taken in turns so that what else the machine does meets them alike."""
    commands = {
        "python3 -IS": BARE,
        "get": (program, "get", "docker://demo"),
        "release": (program, "release"),
    }
    rows = {f"{name}, {how}": Row() for how in ("alone", "64 at once") for name in commands}
    for turn in range(20 * rounds):
        for name, argv in commands.items():
            once(argv, rows[f"{name}, alone"], turn + 1)
    for turn in range(rounds):
        for name, argv in commands.items():
            together(argv, rows[f"{name}, 64 at once"], 1000 + turn * AT_ONCE)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--releases", type=int, default=200, help="versions of the image")
    parser.add_argument("--rounds", type=int, default=5, help="times that 64 start at once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sqshpipe-bench-", dir="/var/tmp") as name:
        folder = Path(name)
        store = published(folder, arguments.releases)
        program = str(install(ImporterSettings(store=store.root, state=folder / "state"), folder / "prefix"))
        load = os.getloadavg()[0]
        rows = measure(program, arguments.rounds)
        calls = [system_calls(argv) for argv in (BARE, (program, "get", "docker://demo"))]
    figures = {name: row.figures() for name, row in rows.items()}
    for name, each in figures.items():
        print(
            f"{name:<42} median {each['median_ms']:6.1f} ms   p99 {each['p99_ms']:6.1f} ms   "
            f"processor {each['cpu_ms']:5.1f} ms"
        )
    bare, got = figures["python3 -IS, 64 at once"], figures["get, 64 at once"]
    ratios = {
        "p99": round(got["p99_ms"] / bare["p99_ms"], 3),
        "cpu": round(got["cpu_ms"] / bare["cpu_ms"], 3),
    }
    print(f"get to python3 -IS, 64 at once: p99 x{ratios['p99']}, processor x{ratios['cpu']}")
    print(f"system calls: bare {calls[0]}, get {calls[1]}; {os.cpu_count()} cores, load before {load:.1f}")
    ok = ratios["p99"] <= RATIO
    print(f"goal of x{RATIO} at p99: {'met' if ok else 'NOT MET'}")
    if arguments.json:
        outcome = {
            "rows": figures,
            "get_to_bare": ratios,
            "system_calls": {"bare": calls[0], "get": calls[1]},
            "releases": arguments.releases,
            "cores": os.cpu_count(),
            "load_1min": load,
            "met": ok,
        }
        arguments.json.write_text(json.dumps(outcome, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
