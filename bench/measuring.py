"""How benchmarks measure: a shell line to its end, several ways in turn, and what machine it was.

Wall seconds, CPU seconds, peak memory and bytes written are those of the whole process tree that the line
waited for; the peak is of its largest process. Bytes written are counted as pages are made dirty, so files
that are removed before they reach the disk count too.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SIZES = ("tiny", "small", "medium", "large")

# In a small process of its own: a child's peak counts from the process that it was split from.
_RUNNER = """
import json, os, sys, time
began = time.perf_counter()
quiet = [(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
pid = os.posix_spawn("/bin/sh", ["sh", "-c", sys.argv[1]], os.environ, file_actions=quiet)
_, status, used = os.wait4(pid, 0)
seconds = time.perf_counter() - began
print(json.dumps([os.waitstatus_to_exitcode(status), seconds, used.ru_utime + used.ru_stime,
                  used.ru_maxrss * 1024, used.ru_oublock * 512]))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Wall and CPU seconds, peak resident bytes, bytes written, bytes of the file that was made (or 0)."""

    seconds: float
    cpu: float
    peak: int
    written: int
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A shell line that is measured, what is done before it unmeasured, and what to know of it.

    A `floor` does only a part of the work, so nobody can choose it.
    """

    line: str
    before: Callable[[], object] | None = None
    note: str = ""
    floor: bool = False
    environment: Mapping[str, str] | None = None


def measure(way: Way, made: Path | None = None) -> Run:
    """Run it to its end; `made` is the file that it makes, as $OUT. SystemExit when it fails."""
    if made is not None:
        made.unlink(missing_ok=True)
    if way.before is not None:
        way.before()
    os.sync()
    argv = [sys.executable, "-IS", "-c", _RUNNER, way.line]
    environment = {**os.environ, **(way.environment or {}), "OUT": str(made or "")}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    code, seconds, cpu, peak, written = json.loads(done.stdout)
    if code != 0:
        raise SystemExit(f"{way.line}\nended with {code}: {done.stderr[-2000:]}")
    size = made.stat().st_size if made is not None and made.exists() else 0
    return Run(seconds=seconds, cpu=cpu, peak=peak, written=written, size=size)


def in_turn(ways: Mapping[str, Way], rounds: int, made: Path | None = None) -> dict[str, list[Run]]:
    """Every way once a round, every second round backwards, so that what else happens meets all alike."""
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways) if number % 2 == 0 else list(ways)[::-1]:
            runs[name].append(measure(ways[name], made))
            print(f"  round {number + 1}  {runs[name][-1].seconds:7.2f} s  {name}", flush=True)
    return runs


def rows(ways: Mapping[str, Way], runs: Mapping[str, Sequence[Run]]) -> list[dict[str, Any]]:
    """As it is kept in JSON."""
    return [
        {
            "way": name,
            "note": ways[name].note,
            "floor": ways[name].floor,
            "runs": [asdict(run) for run in done],
        }
        for name, done in runs.items()
    ]


def median(row: Mapping[str, Any], key: str) -> float:
    """Of one key of a kept row's runs."""
    return float(statistics.median(run[key] for run in row["runs"]))


def absent(*programs: str) -> str:
    """Which of them is not installed, in words; empty when all are."""
    return next((f"{name} is not installed" for name in programs if shutil.which(name) is None), "")


def machine(folder: Path) -> dict[str, Any]:
    """What it was measured on; `folder` is where the files lie."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "kernel": platform.release().split("-")[0],
        "file_system": _said("stat", "-f", "-c", "%T", str(folder)),
        "python": platform.python_version(),
        "load_1min_before": round(os.getloadavg()[0], 1),
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine()).replace("(R)", "").replace("(TM)", "")


_VERSIONS = {
    "mksquashfs": ("mksquashfs", "-version"),
    "enroot": ("enroot", "version"),
    "umoci": ("umoci", "--version"),
    "tar2sqfs": ("tar2sqfs", "--version"),
    "ch-convert": ("ch-convert", "--version"),
    "skopeo": ("skopeo", "--version"),
    "dockerd": ("dockerd", "--version"),
}


def programs(names: Iterable[str] = _VERSIONS) -> dict[str, str]:
    """First lines of what installed peers say of their version."""
    return {name: _said(*_VERSIONS[name]) for name in names if shutil.which(_VERSIONS[name][0])}


def _said(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip().partition("\n")[0]


def keep(output: Path, size: str, folder: Path, found: Mapping[str, Any]) -> None:
    """Write a result beside its date and machine."""
    name = output.stem
    outcome = {
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d}",
        "command": f"python -m bench --size {size} {name}",
        "size": size,
        "machine": machine(folder),
        **found,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(outcome, indent=2) + "\n", encoding="utf-8")
