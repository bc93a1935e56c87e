"""Starting up: what scripts wait for before sqshpipe answers, beside Python itself and other commands.

    python -m bench.start [--size small|medium|large] [--rounds 9] [--output FILE.json]

The limit that the project promises for `resolve`, `list` and `--help` is 0.3 s.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from pathlib import Path

from bench import measuring
from bench.measuring import Way
from tests.support.store.showcase import showcase

ROUNDS = {"tiny": 1, "small": 9, "medium": 15, "large": 15}


def ways(store: Path) -> dict[str, Way]:
    """The verbs, and what the same interpreter takes for nothing."""
    python = shlex.quote(sys.executable)
    sqshpipe = f"{python} -m pipeline"
    found = {
        "sqshpipe resolve": Way(line=f"{sqshpipe} resolve pytorch --platform linux/amd64 --store {store}"),
        "sqshpipe list": Way(line=f"{sqshpipe} list --store {store}"),
        "sqshpipe --help": Way(line=f"{sqshpipe} --help"),
        "python, nothing": Way(line=f"{python} -c pass"),
    }
    peers = {
        "umoci --help": "umoci --help",
        "skopeo --help": "skopeo --help",
        "docker --help": "docker --help",
    }
    return {
        **found,
        **{name: Way(line=line) for name, line in peers.items() if not measuring.absent(line.split()[0])},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=measuring.SIZES, default="small")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--output", type=Path, default=measuring.RESULTS / "start.json")
    given = parser.parse_args()
    rounds = given.rounds or ROUNDS[given.size]
    os.environ["SQSHPIPE_CONFIG"] = "/nonexistent"
    with tempfile.TemporaryDirectory(prefix="sqshpipe-bench-", dir="/var/tmp") as name:
        work = Path(name)
        store = showcase(work / "store", work / "work").root
        made = ways(store)
        measuring.in_turn(made, 1)  # compiles what was never imported
        runs = measuring.in_turn(made, rounds)
        measuring.keep(given.output, given.size, work, {"rounds": rounds, "rows": measuring.rows(made, runs)})


if __name__ == "__main__":
    main()
