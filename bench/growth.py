"""How the time grows: with the size of the image, its files, its layers, and the cores that may be used.

    python -m bench.growth [--size small|medium|large] [--rounds 2] [--output FILE.json]

One thing changes at a time. Beside sqshpipe stands the peer that starts from the same layers: umoci unpacks,
mksquashfs packs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import convert, images, measuring
from bench.measuring import Way

ROUNDS = {"tiny": 1, "small": 2, "medium": 3, "large": 3}
MEGABYTES = {"tiny": (1, 2), "small": (15, 30, 60), "medium": (100, 200, 400), "large": (500, 1000, 2000)}
FILES = {
    "tiny": (100, 200),
    "small": (1000, 4000, 16_000),
    "medium": (5000, 20_000, 80_000),
    "large": (10_000, 100_000, 400_000),
}
LAYERS = {"tiny": (2, 3), "small": (2, 8, 32), "medium": (2, 8, 32), "large": (2, 16, 64)}
WAYS = ("sqshpipe native", "sqshpipe native, top layer changed", "umoci, mksquashfs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One image and the cores that it is converted on (0: all)."""

    by: str
    value: int
    megabytes: float
    layers: int = 7
    files: int = 0
    cores: int = 0


def points(size: str) -> Iterator[Point]:
    """Everything that is measured."""
    least = MEGABYTES[size][0]
    for megabytes in MEGABYTES[size]:
        yield Point(by="megabytes", value=megabytes, megabytes=megabytes)
    for files in FILES[size]:
        yield Point(by="files", value=files, megabytes=least, files=files)
    for layers in LAYERS[size]:
        yield Point(by="layers", value=layers, megabytes=least, layers=layers)
    cores = 1
    while cores <= len(os.sched_getaffinity(0)):
        yield Point(by="cores", value=cores, megabytes=MEGABYTES[size][1], cores=cores)
        cores *= 2


def measured(point: Point, rounds: int, folder: Path) -> dict[str, Any]:
    """The rows of one point."""
    folder.mkdir()
    image = images.make(folder / "layout", megabytes=point.megabytes, layers=point.layers, files=point.files)
    ways = {**convert.ours(image, folder), **convert.on_layers(image, folder)}
    ways, missing = convert.possible({name: ways[name] for name in WAYS})
    if point.cores:
        ways = {name: _on(way, point.cores) for name, way in ways.items()}
    runs = measuring.in_turn(ways, rounds, folder / "made.sqsh")
    shutil.rmtree(folder)
    return {
        "by": point.by,
        "value": point.value,
        "image": image.facts(),
        "left_out": missing,
        "rows": measuring.rows(ways, runs),
    }


def _on(way: Way, cores: int) -> Way:
    wanted = ",".join(str(core) for core in sorted(os.sched_getaffinity(0))[:cores])
    return Way(
        line=f"taskset -pc {wanted} $$ >/dev/null; {way.line}",
        before=way.before,
        note=way.note,
        environment=way.environment,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=measuring.SIZES, default="small")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--output", type=Path, default=measuring.RESULTS / "growth.json")
    given = parser.parse_args()
    rounds = given.rounds or ROUNDS[given.size]
    with tempfile.TemporaryDirectory(prefix="sqshpipe-bench-", dir="/var/tmp") as name:
        work, found = Path(name), []
        for number, point in enumerate(points(given.size)):
            print(f"  {point.value} {point.by}", flush=True)
            found.append(measured(point, rounds, work / f"{number}"))
        measuring.keep(given.output, given.size, work, {"rounds": rounds, "points": found})


if __name__ == "__main__":
    main()
