"""How long a look-up takes: one `get` alone, and 64 at once as when a wide step starts on one node.

    python bench/importer.py [--releases 200] [--rounds 5]

Prints milliseconds (median, p99) and the limits that the project promises: 40 ms alone, p99 under 400 ms with
64 at once on two cores. The bare start of the interpreter is printed beside them, since it is the floor.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.cluster.install import ImporterSettings, install
from tests.support.handmade_store import HandmadeStore

AT_ONCE = 64
PYTHON = "/usr/bin/python3"


def once(argv: Sequence[str], env: dict[str, str]) -> float:
    """Milliseconds from start to end of one process."""
    began = time.perf_counter()
    subprocess.run(argv, env=env, stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - began) * 1e3


def together(argv: Sequence[str]) -> list[float]:
    """Milliseconds from the common start to the end of each of 64 processes that start on one signal."""
    read, write = os.pipe()
    waiting = [
        subprocess.Popen(
            ["/bin/sh", "-c", f'read _ <&{read}; exec "$@"', "sh", *argv],
            env={"SLURM_JOB_ID": str(number), "SLURM_STEP_ID": "0"},
            stdout=subprocess.DEVNULL,
            pass_fds=[read],
        )
        for number in range(1, AT_ONCE + 1)
    ]
    os.close(read)
    time.sleep(0.5)
    left = {each.pid: each for each in waiting}
    began = time.perf_counter()
    os.close(write)
    times = []
    while left:
        pid, status = os.wait()
        if left.pop(pid, None) is not None:
            times.append((time.perf_counter() - began) * 1e3)
            assert os.waitstatus_to_exitcode(status) == 0
    for each in waiting:
        each.returncode = 0
    return times


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--releases", type=int, default=200, help="versions of the image")
    parser.add_argument("--rounds", type=int, default=5, help="times that 64 start at once")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sqshpipe-bench-", dir="/var/tmp") as folder:
        store = HandmadeStore(Path(folder) / "store")
        for number in range(arguments.releases):
            store.release("demo", f"v{number}", index=number == 0)
        table = store.index("demo")
        table["releases"] = {f"v{number}": table["releases"]["v0"] for number in range(arguments.releases)}
        store.write_index("demo", table)
        store.channel("demo", "latest", "v0")
        program = str(
            install(ImporterSettings(store=store.root, state=Path(folder) / "state"), Path(folder) / "p")
        )
        env = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0"}
        rows = {
            "python3 -IS alone": [once([PYTHON, "-IS", "-c", "pass"], env) for _ in range(40)],
            "get alone": [once([program, "get", "docker://demo"], env) for _ in range(40)],
            "python3 -IS, 64 at once": [
                each for _ in range(arguments.rounds) for each in together([PYTHON, "-IS", "-c", "pass"])
            ],
            "get, 64 at once": [
                each for _ in range(arguments.rounds) for each in together([program, "get", "docker://demo"])
            ],
        }
        for name, values in rows.items():
            median, p99 = percentile(values, 0.5), percentile(values, 0.99)
            print(f"{name:<26} median {median:6.1f} ms   p99 {p99:6.1f} ms")
        ok = percentile(rows["get alone"], 0.5) <= 40 and percentile(rows["get, 64 at once"], 0.99) < 400
        print(f"{os.cpu_count()} cores; limits 40 ms alone and 400 ms p99: {'kept' if ok else 'NOT KEPT'}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
