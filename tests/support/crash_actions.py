"""One action on a store in a process of its own, to be killed or failed by strace: crash_actions ACTION
STORE.

Everything is imported before the marker, so that between the markers there are the action's own calls only.
Ends with the exit code that the command line would have.
"""

from __future__ import annotations

import ctypes  # noqa: F401 - loaded now, so that its files are not among the calls
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pipeline.store.caches
import pipeline.store.channels
import pipeline.store.publisher
import pipeline.store.sync
from pipeline.errors import SqshpipeError
from pipeline.store import prune as pruning
from pipeline.store.retention import Policy
from pipeline.store.store import Store
from tests.support.releases import record_for

BEGIN, END = "/marker-begin", "/marker-end"
ALL_OLD = Policy(keep=1, named_grace=timedelta(0), delete_after=timedelta(0))


def publish(store: Store) -> None:
    """A new version from a file outside the store, with latest moving on."""
    content = b"v1.3"
    source = store.root.parent / "source"
    store.publish(record_for(content, "v1.3"), source)


def promote(store: Store) -> None:
    """A channel that is new, so that its name is claimed too."""
    store.promote("demo:v1.1", "nightly")


def yank(store: Store) -> None:
    """The release that latest names, so that the channel goes back."""
    store.mark("demo:v1.2", "yank", reason="wrong")


def prune(store: Store) -> None:
    """Hides v1.1; deletes v1.0, which is hidden, and leaves what is leased."""
    pruning.prune(store.layout, ALL_OLD, pruning.no_jobs)


def sync(store: Store) -> None:
    """To an empty store beside it."""
    pipeline.store.sync.sync(store, Store(store.root.parent / "copy"))


ACTIONS: dict[str, Callable[[Store], None]] = {
    "publish": publish,
    "promote": promote,
    "yank": yank,
    "prune": prune,
    "sync": sync,
}


def main() -> int:
    action, root = ACTIONS[sys.argv[1]], Path(sys.argv[2])
    os.access(BEGIN, os.F_OK)
    try:
        action(Store(root))
    except SqshpipeError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    finally:
        os.access(END, os.F_OK)
    return 0


if __name__ == "__main__":
    sys.exit(main())
