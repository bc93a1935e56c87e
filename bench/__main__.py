"""``make bench``: every benchmark that this machine can run, at one size; then the documents' figures.

    python -m bench [--size small|medium|large] [--output FOLDER] [NAME …]

Each writes FOLDER/NAME.json. Without --output that is bench/results, and docs/benchmarks.md, its charts and
the READMEs are written from it (`python -m bench.figures`). One that fails costs the others nothing, and the
exit code is 1; one whose programs are not installed is left out and reported, without a failure. `native`,
`from_store` and `verdict` convert an image of gigabytes and run only when named or when the size is large.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from bench.measuring import RESULTS, SIZES, absent, machine

Runner = Callable[[str, Path], int]
"""Called with the size and the file to write; gives an exit code."""


def _module(name: str, *words: str) -> int:
    return subprocess.run([sys.executable, "-m", f"bench.{name}", *words], check=False).returncode


def _sized(name: str) -> Runner:
    return lambda size, file: _module(name, "--size", size, "--output", str(file))


def _counted(name: str, flag: str, counts: tuple[int, int, int, int], *more: str) -> Runner:
    return lambda size, file: _module(name, flag, str(counts[SIZES.index(size)]), *more, "--json", str(file))


def _lines(name: str, flag: str, *counts: tuple[int, ...]) -> Runner:
    """One that prints a line of JSON a measurement."""

    def run(size: str, file: Path) -> int:
        words = [str(count) for count in counts[SIZES.index(size)]]
        argv = [sys.executable, "-m", f"bench.{name}", flag, *words]
        done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False)
        print(done.stdout, end="")
        if done.returncode == 0:
            points = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
            file.write_text(json.dumps({"points": points}, indent=2) + "\n", encoding="utf-8")
        return done.returncode

    return run


def _on_the_large_image(name: str) -> Runner:
    def run(_size: str, file: Path) -> int:
        with tempfile.TemporaryDirectory(prefix="sqshpipe-bench-", dir="/var/tmp") as folder:
            image = f"{folder}/image"
            return _module("native_image", image) or _module(
                name, image, "--folder", folder, "--output", str(file)
            )

    return run


def _sign(file: Path, name: str, size: str) -> None:
    """Date, command and machine, where the benchmark itself has not written them."""
    outcome = json.loads(file.read_text(encoding="utf-8"))
    outcome.setdefault("date", f"{datetime.now(timezone.utc):%Y-%m-%d}")
    outcome.setdefault("command", f"python -m bench --size {size} {name}")
    outcome["machine"] = {**machine(file.parent), **outcome.get("machine", {})}
    file.write_text(json.dumps(outcome, indent=2) + "\n", encoding="utf-8")


LARGE = ("native", "from_store", "verdict")
RUNNERS: dict[str, Runner] = {
    "convert": _sized("convert"),
    "growth": _sized("growth"),
    "publish": _sized("publish"),
    "plan": _sized("plan"),
    "start": _sized("start"),
    "store": _counted("store", "--releases", (200, 1000, 10_000, 10_000)),
    "importer": _counted("importer", "--releases", (5, 100, 200, 1000)),
    "mirror": _counted("mirror", "--megabytes", (4, 64, 512, 1024)),
    "refresh": _counted("refresh", "--images", (2, 50, 50, 50)),
    "zstd_layers": _counted("zstd_layers", "--megabytes", (4, 40, 400, 2000)),
    "small_files": _counted("small_files", "--files", (50, 1000, 20_000, 100_000)),
    "node": _counted("node", "--megabytes", (2, 60, 400, 2000)),
    "native_synthetic": _lines(
        "native_synthetic", "--files", (1000,), (10_000,), (10_000, 100_000), (100_000, 1_000_000)
    ),
    "native_memory": _lines("native_memory", "--megabytes", (4,), (100, 300), (300, 600), (500, 1000, 2000)),
    "difference": _counted("difference", "--megabytes", (4, 60, 400, 2000)),
    **{name: _on_the_large_image(name) for name in LARGE},
}

_REGISTRY = ("docker-registry", "htpasswd")
NEEDS: dict[str, tuple[str, ...]] = {
    "plan": _REGISTRY,
    "refresh": _REGISTRY,
    "mirror": (*_REGISTRY, "skopeo"),
    "store": ("mksquashfs",),
    "small_files": ("squashfuse", "fusermount3"),
    "native": ("mksquashfs",),
    "from_store": _REGISTRY,
    "difference": ("mkfs.xfs", "fusermount3"),
}
"""Programs without which a benchmark says nothing; single peers are left out by the benchmark itself."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--output", type=Path, help="write the JSON there and leave the documents alone")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(RUNNERS))
    given = parser.parse_args()
    if unknown := set(given.names) - set(RUNNERS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    folder: Path = given.output or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    wanted = given.names or [name for name in RUNNERS if name not in LARGE or given.size == "large"]
    failed, left_out = [], []
    for name in wanted:
        if why := absent(*NEEDS.get(name, ())):
            left_out.append(f"{name}: {why}")
            continue
        began = time.monotonic()
        print(f"\n{name}, {given.size}", flush=True)
        file = folder / f"{name}.json"
        if RUNNERS[name](given.size, file) != 0:
            failed.append(name)
        if file.exists():
            _sign(file, name, given.size)
        print(f"  {name} took {time.monotonic() - began:.0f} s", flush=True)
    if given.output is None:
        from bench import figures

        figures.write()
    for outcome in left_out:
        print(f"left out: {outcome}", file=sys.stderr)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
