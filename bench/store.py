"""What a store costs with ten and with ten thousand releases: list, resolve, prune --dry-run, publish.

    python -m bench.store [--releases 10000] [--rounds 15]

Each figure is the best of several rounds, in the process (ms) and for `list`, `resolve`, `prune` also as the
command that a person runs. The ratio compares the full store with one of ten. The releases lie in one image,
which is the worst case, and in a hundred.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.store import folders, prune
from pipeline.store.events import Change, Event, as_bytes
from pipeline.store.record import Record
from pipeline.store.retention import Policy
from pipeline.store.store import Store

SMALL = 10


def record(image: str, number: int, content: bytes) -> Record:
    """A release of the size and detail that the pipeline writes."""
    digest = hashlib.sha256(content).hexdigest()
    return Record(
        image=image,
        version=f"v1.{number}",
        platform="linux/amd64",
        sha256=digest,
        size=len(content),
        source={"repository": f"registry.example.com/team/{image}", "digest": f"sha256:{digest}"},
        base={"reference": "nvcr.io/nvidia/pytorch:24.01-py3", "digest": f"sha256:{digest}"},
        keys={"build": digest, "convert": digest},
        converter={"name": "mksquashfs", "options": {"level": 3, "block_size": 131072}, "format": 1},
        scan={"status": "unscanned", "scanner": "none"},
        checks=("superblock", "tree"),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(1.7e9 + number)),
    )


def fill(root: Path, images: int, releases: int) -> Store:
    """A store in which every release was published and named by latest, made without a flush for each."""
    store = Store(root)
    folders.make(store.layout.blobs)
    for index in range(images):
        image = f"image{index}"
        store.layout.events(image).mkdir(parents=True)
        for number in range(releases // images):
            content = f"{image} {number}".encode()
            made = record(image, number, content)
            store.layout.blob(made.sha256).write_bytes(content)
            store.layout.record(image, made.version, made.platform).write_bytes(made.as_bytes())
            change = Change(kind="promote", version=made.version, channel="latest", reason="published")
            event = Event(number=number + 1, change=change, by="bench@here", at=made.created)
            store.layout.event(image, event.number).write_bytes(as_bytes(image, event))
    store.rebuild()
    return store


def best(action: Callable[[int], object], rounds: int) -> float:
    """Milliseconds of the fastest round."""
    times = []
    for number in range(rounds):
        started = time.perf_counter()
        action(number)
        times.append(time.perf_counter() - started)
    return min(times) * 1000


def command(store: Store, *words: str) -> None:
    argv = [sys.executable, "-m", "pipeline", *words, "--store", str(store.root)]
    environment = {**os.environ, "SQSHPIPE_CONFIG": "/nonexistent"}
    ended = subprocess.run(argv, check=False, capture_output=True, env=environment)
    if ended.returncode not in (0, 10):  # 10: a dry run that found something to do
        raise subprocess.CalledProcessError(ended.returncode, argv, ended.stdout, ended.stderr)


def measure(store: Store, rounds: int) -> dict[str, float]:
    image = store.images()[0]
    oldest = store.listed(image)[-1].version
    policy = Policy(keep=5)

    def publish(number: int) -> None:
        content = f"new {number}".encode() * 1000
        made = record(image, 100_000 + number, content)
        with store.staging() as staged:
            staged.write_bytes(content)
            store.publish(made, staged)

    squashfs = store.root.parent / "bench.sqsh"
    if not squashfs.exists():
        mksquashfs = ["mksquashfs", __file__, squashfs, "-quiet", "-no-progress"]
        subprocess.run(mksquashfs, check=True, capture_output=True)

    return {
        "resolve version": best(lambda _: store.resolve(f"{image}:{oldest}"), rounds),
        "resolve channel": best(lambda _: store.resolve(image), rounds),
        "list": best(lambda _: [store.listed(name) for name in store.images()], rounds),
        "prune --dry-run": best(
            lambda _: prune.prune(store.layout, policy, prune.no_jobs, dry_run=True), rounds
        ),
        "publish": best(publish, rounds),
        "command resolve": best(lambda _: command(store, "resolve", image, "--platform", "linux/amd64"), 5),
        "command list": best(lambda _: command(store, "list"), 5),
        "command publish": best(
            lambda number: command(
                store, "store", "import", str(squashfs), "--as", f"{image}:v2.{number}", "--allow-external"
            ),
            5,
        ),
        "command prune --dry-run": best(
            lambda _: command(store, "store", "prune", "--dry-run", "--no-slurm"), 5
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--releases", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=None, help="where the stores are made")
    parser.add_argument("--json", type=Path, default=None, help="also write the figures there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        few = measure(fill(Path(folder) / "few", 1, SMALL), options.rounds)
        figures = {}
        for images in (1, 100):
            store = fill(Path(folder) / f"many{images}", images, options.releases)
            figures[images] = measure(store, options.rounds)
        print(f"{'ms, best of rounds':<24} {SMALL:>9}", end="")
        for images in figures:
            print(f" {options.releases:>8,} in {images:<3} ratio", end="")
        print()
        for name, base in few.items():
            print(f"{name:<24} {base:>9.2f}", end="")
            for found in figures.values():
                print(f" {found[name]:>12.2f}  {found[name] / base:>8.2f}", end="")
            print()
    if options.json:
        words = f"python -m bench.store --releases {options.releases} --rounds {options.rounds}"
        load = os.getloadavg()
        outcome = {"command": words, "processors": os.cpu_count(), "load": load, **_compared(few, figures)}
        options.json.write_text(json.dumps(outcome, indent=2) + "\n")


def _compared(few: dict[str, float], many: dict[int, dict[str, float]]) -> dict[str, object]:
    """Milliseconds with ten releases and with many, by the number of images that they lie in, and ratios."""
    ratios = {
        images: {name: round(found[name] / base, 2) for name, base in few.items()}
        for images, found in many.items()
    }
    return {"milliseconds": {str(SMALL): few, **many}, "ratios": ratios}


if __name__ == "__main__":
    main()
