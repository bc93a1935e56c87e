"""Publishing, verifying and scrubbing one .sqsh, beside what people type for it today.

    python -m bench.publish [--size small|medium|large] [--rounds 5] [--output FILE.json]

The file and the store lie on one file system. Publishing starts with an empty store in each round.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from bench import convert, images, measuring
from bench.measuring import Way
from pipeline.store.store import Store

MEGABYTES = {"tiny": 2, "small": 60, "medium": 400, "large": 2000}
ROUNDS = {"tiny": 1, "small": 3, "medium": 5, "large": 5}


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    Store(folder).create()


def ways(image: images.Image, file: Path, work: Path) -> dict[str, Way]:
    """What is compared; names before the colon group the table."""
    program = f"{shlex.quote(sys.executable)} -m pipeline -q"
    store, held, copy = work / "store", work / "held", work / "copy.sqsh"
    publish = f"{program} store import {file} --as bench:v1.0 --allow-external --store"
    _empty(held)
    measuring.measure(Way(line=f"{publish} {held}"))
    unpacked = f"{work}/bundle {work}/tree"
    return {
        "publish: sqshpipe": Way(
            line=f"{publish} {store}",
            before=lambda: _empty(store),
            note="copies, flushes, hashes, reads the superblock, links the record",
        ),
        "publish: cp, fsync, sha256sum": Way(
            line=f"cp --reflink=never {file} {copy} && sync {copy} && sha256sum {copy}",
            before=lambda: copy.unlink(missing_ok=True),
            note="no record, no channel, no lock",
        ),
        "publish: sqshpipe again": Way(line=f"{publish} {held}", note="the same content is there already"),
        "verify: sqshpipe": Way(
            line=f"{program} verify {file} oci:{image.layout}:new",
            environment={"SQSHPIPE_CACHE": f"{work}/none"},
            note="every entry and byte against the image's layers",
        ),
        "verify: unsquashfs, umoci, diff": Way(
            line=f"rm -rf {unpacked}; umoci unpack --image {image.layout}:new {work}/bundle"
            f" && unsquashfs -q -n -d {work}/tree {file}"
            f" && diff -r --no-dereference {work}/bundle/rootfs {work}/tree | grep -v '^Only in' | wc -l",
            note="content only; owners and modes are not looked at",
        ),
        "scrub: sqshpipe": Way(line=f"{program} store scrub --store {held}", note="sha256 and superblock"),
        "scrub: sha256sum": Way(line=f"sha256sum {file}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=measuring.SIZES, default="small")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--output", type=Path, default=measuring.RESULTS / "publish.json")
    given = parser.parse_args()
    rounds = given.rounds or ROUNDS[given.size]
    with tempfile.TemporaryDirectory(prefix="sqshpipe-bench-", dir="/var/tmp") as name:
        work = Path(name)
        image = images.make(work / "layout", megabytes=MEGABYTES[given.size])
        file = work / "bench.sqsh"
        measuring.measure(convert.ours(image, work)["sqshpipe native"], file)
        possible, missing = convert.possible(ways(image, file, work))
        runs = measuring.in_turn(possible, rounds)
        found = {"image": image.facts(), "file_bytes": file.stat().st_size, "rounds": rounds}
        measuring.keep(
            given.output,
            given.size,
            work,
            {**found, "left_out": missing, "rows": measuring.rows(possible, runs)},
        )


if __name__ == "__main__":
    main()
