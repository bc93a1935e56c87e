"""Where the time goes until the ranks of a node work: the image unpacked, mounted, and mounted warm.

    python -m bench.node [--megabytes 400] [--rounds 3] [--image FILE.sqsh] [--json FILE] [-- COMMAND…]

`sqshpipe node bench` on an image of real content; the median of several rounds. The work is reading the
Python files and libraries in it, as an import does, or a command in an image of one's own. Once on this
machine's disk, once through a FUSE file system that takes 2 ms for a read of up to 128 KiB, as shared storage
that is far away does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import convert, images, measuring
from tests.support.faults import badfs


def once(file: Path, scratch: Path, command: list[str]) -> list[dict[str, Any]]:
    """One round of all ways."""
    argv = [sys.executable, "-m", "pipeline", "-q", "node", "bench", str(file), "--json"]
    argv += ["--scratch", str(scratch), *(["--", *command] if command else [])]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def merged(rounds: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Medians of each way, where it worked in every round."""
    rows = []
    for each in zip(*rounds, strict=True):
        row = dict(each[0])
        for key in ("first_rank", "work", "first_bytes", "bytes"):
            values = [one[key] for one in each]
            row[key] = None if None in values else round(statistics.median(values), 4)
        rows.append(row)
    return rows


@contextlib.contextmanager
def slow_store(folder: Path) -> Iterator[Path]:
    """The same folder through a file system that takes 2 ms a read."""
    place = folder.with_name("slow")
    place.mkdir()
    server = subprocess.Popen([sys.executable, "-m", badfs.__name__, str(folder), str(place), "slow"])
    try:
        while not place.is_mount():
            if server.poll() is not None:
                raise SystemExit("no FUSE here: python -m bench.node needs /dev/fuse for its slow store")
            time.sleep(0.01)
        yield place
    finally:
        subprocess.run(["fusermount3", "-u", str(place)], check=False)
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--image", type=Path, help="instead of one that is made here")
    parser.add_argument("--json", type=Path, default=measuring.RESULTS / "node.json")
    parser.add_argument("command", nargs="*", help="after --: the work in the image")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sqshpipe-bench-", dir="/var/tmp") as name:
        work = Path(name)
        (work / "store").mkdir()
        file = work / "store" / "bench.sqsh"
        facts: dict[str, int] = {}
        if given.image:
            shutil.copyfile(given.image, file)
        else:
            image = images.make(work / "layout", megabytes=given.megabytes)
            measuring.measure(convert.ours(image, work)["sqshpipe native"], file)
            facts = image.facts()
        facts["file_bytes"] = file.stat().st_size
        stores = {"local": merged([once(file, work, given.command) for _ in range(given.rounds)])}
        with slow_store(file.parent) as slow:
            far = [once(slow / file.name, work, given.command) for _ in range(given.rounds)]
            stores["slow"] = merged(far)
    for store, ways in stores.items():
        print(store)
        for row in ways:
            name = f"{row['way']}, warm" if row["warm"] else row["way"]
            figures = f"{row['first_rank']} s, {row['first_bytes']} B, work {row['work']} s, {row['bytes']} B"
            print(f"  {name:<26} {row['ranks']} ranks  {figures}  {row['note']}")
        if all(row["first_rank"] is None for row in ways):
            raise SystemExit("no way to start ranks works on this machine, so nothing was measured")
    found = {"rounds": given.rounds, "image": facts, "stores": stores}
    given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
