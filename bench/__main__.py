"""``make bench``: every benchmark that this machine can run, at one size, with results in bench/results/.

    python -m bench [--size small|medium|large] [NAME …]

Each writes what it prints to bench/results/NAME-SIZE.txt, `peers` also JSON and a plot. One that fails costs
the others nothing, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
SIZES = ("small", "medium", "large")


def commands(size: str) -> dict[str, list[str]]:
    """What each benchmark is called with."""
    step = SIZES.index(size)
    rounds = "3" if step < 2 else "5"
    return {
        "peers": ["--size", size, "--rounds", rounds, "--output", str(RESULTS / f"peers-{size}.json")],
        "store": [
            "--releases",
            ("100", "1000", "10000")[step],
            "--json",
            str(RESULTS / f"store-{size}.json"),
        ],
        "importer": ["--releases", ("50", "200", "1000")[step]],
        "mirror": ["--megabytes", ("64", "256", "1024")[step]],
        "native_synthetic": ["--files", ("10000", "100000", "1000000")[step]],
        "native_memory": ["--megabytes", *("100", "500", "1000", "2000")[: step + 2]],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    known = commands("small")
    parser.add_argument("names", nargs="*", choices=[*known, []], metavar="NAME", help=", ".join(known))
    given = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    failed = []
    for name, words in commands(given.size).items():
        if given.names and name not in given.names:
            continue
        print(f"\n{name}, {given.size}", flush=True)
        argv = [sys.executable, "-m", f"bench.{name}", *words]
        done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False)
        print(done.stdout, end="", flush=True)
        (RESULTS / f"{name}-{given.size}.txt").write_text(done.stdout, encoding="utf-8")
        if done.returncode != 0:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
