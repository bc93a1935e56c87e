"""Where the time goes until the ranks of a node work: the image unpacked, mounted, and mounted warm.

    python -m bench.node [--megabytes 400] [--rounds 3] [--json FILE]

`sqshpipe node bench` on an image of real content; the median of several rounds. The work is reading the
Python files and libraries in it, as an import does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import convert, images, measuring


def once(file: Path, scratch: Path) -> list[dict[str, Any]]:
    """One round of all ways."""
    argv = [sys.executable, "-m", "pipeline", "-q", "node", "bench", str(file), "--json"]
    done = subprocess.run([*argv, "--scratch", str(scratch)], stdout=subprocess.PIPE, text=True, check=True)
    told: list[dict[str, Any]] = json.loads(done.stdout)
    return told


def merged(rounds: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Medians of each way, where it worked in every round."""
    rows = []
    for each in zip(*rounds, strict=True):
        row = dict(each[0])
        for key in ("first_rank", "work"):
            values = [one[key] for one in each]
            row[key] = None if None in values else round(statistics.median(values), 4)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=measuring.RESULTS / "node.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sqshpipe-bench-", dir="/var/tmp") as name:
        work = Path(name)
        image = images.make(work / "layout", megabytes=given.megabytes)
        file = work / "bench.sqsh"
        measuring.measure(convert.ours(image, work)["sqshpipe native"], file)
        ways = merged([once(file, work) for _ in range(given.rounds)])
        facts = {**image.facts(), "file_bytes": file.stat().st_size}
    for row in ways:
        print(f"  {row['way']:<20} {row['first_rank']} s, work {row['work']} s  {row['note']}")
    if all(row["first_rank"] is None for row in ways):
        raise SystemExit("no way to start ranks works on this machine, so nothing was measured")
    told = {"rounds": given.rounds, "image": facts, "ways": ways}
    given.json.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
