"""What reading ahead costs a `get`: 200 calls with a start-up profile, alternating with 200 without.

    python -m bench.prefetch [--calls 200] [--json FILE]

The profile names 64 MiB of a file of 256 MiB in 350 ranges. Each call is a step of its own; its release,
which ends the reading, is not timed. Goal: the median is at most 2 ms longer.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

from bench.importer import Row, once
from pipeline.node.install import ImporterSettings, install
from pipeline.squashfs.startup import Profile
from pipeline.store import leases, profiles
from pipeline.store.store import Store
from tests.support.store.handmade_store import squashfs_like
from tests.support.store.releases import new_store, record_for

GOAL_MS = 2.0
SIZE = 256 << 20
RANGES = 350


def published(folder: Path) -> Store:
    """A store with one release and its profile."""
    store = new_store(folder / "store")
    head = squashfs_like("start", 4096)
    with store.staging() as staged:
        with staged.open("wb") as file:
            file.write(head[:40] + SIZE.to_bytes(8, "little") + head[48:])
            file.truncate(SIZE)
        sha256 = hashlib.sha256(staged.read_bytes()).hexdigest()
        record = dataclasses.replace(record_for(head, "v1"), sha256=sha256, size=SIZE)
        release = store.publish(record, staged)
    length = (SIZE // 4) // RANGES
    ranges = tuple((number * (SIZE // RANGES), length) for number in range(RANGES))
    profiles.attach(store.layout, release, Profile(sha256=sha256, size=SIZE, ranges=ranges))
    leases.prepare(store.layout)
    return store


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sqshpipe-bench-", dir="/var/tmp") as name:
        folder = Path(name)
        store = published(folder)
        programs = {}
        for way, most in (("without", 0), ("with", 1024)):
            settings = ImporterSettings(store=store.root, state=folder / way, prefetch_mib=most)
            programs[way] = str(install(settings, folder / f"prefix-{way}"))
        rows = {way: Row() for way in programs}
        for turn in range(arguments.calls):
            for way, program in programs.items():
                once((program, "get", "docker://demo"), rows[way], turn + 1)
                once((program, "release"), Row(), turn + 1)
                time.sleep(0.02)
    figures = {way: row.figures() for way, row in rows.items()}
    for way, each in figures.items():
        print(f"get {way:<8} median {each['median_ms']:6.2f} ms   processor {each['cpu_ms']:6.2f} ms")
    more = round(figures["with"]["median_ms"] - figures["without"]["median_ms"], 2)
    met = "met" if more <= GOAL_MS else "NOT MET"
    print(f"difference of the medians {more:.2f} ms, goal {GOAL_MS} ms: {met}")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    if arguments.json:
        found = {"rows": figures, "difference_ms": more, "cores": os.cpu_count(), "calls": arguments.calls}
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
