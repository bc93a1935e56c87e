"""Actions on a store, each in a process of its own, to be killed or failed by strace.

Reads lines ACTION, STORE and a file for its words, parted by tabs. For each it forks a child that stops at
once (whoever traces it sends SIGCONT), prints the child's process id, and when it has ended its exit code,
which is the one that the command line would have.
"""

from __future__ import annotations

import ctypes  # noqa: F401 - loaded now, so that its files are not among the calls
import os
import signal
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pipeline.store.caches
import pipeline.store.channels
import pipeline.store.publish
import pipeline.store.sync
from pipeline.errors import SqshpipeError, ToolError
from pipeline.store import prune as pruning
from pipeline.store.retention import Policy
from pipeline.store.store import Store
from pipeline.system.scratch import scratch_folder
from tests.support.store.releases import new_store, record_for

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
    pipeline.store.sync.sync(store, new_store(store.root.parent / "copy"))


def scratch(store: Store) -> None:
    """A working folder in the store's root, with something in it."""
    with scratch_folder(store.root) as folder:
        try:
            (folder / "root" / "usr").mkdir(parents=True)
            (folder / "root" / "usr" / "file").write_bytes(b"x")
        except OSError as error:
            raise ToolError(f"cannot write in {folder}: {error.strerror}") from error


ACTIONS: dict[str, Callable[[Store], None]] = {
    "publish": publish,
    "promote": promote,
    "yank": yank,
    "prune": prune,
    "sync": sync,
    "scratch": scratch,
}


def act(action: str, root: Path) -> int:
    """The action between its markers."""
    os.access(BEGIN, os.F_OK)
    try:
        ACTIONS[action](Store(root))
    except SqshpipeError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    finally:
        os.access(END, os.F_OK)
    return 0


def main() -> None:
    for line in sys.stdin:
        action, root, said = line.rstrip("\n").split("\t")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                words = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(words, 1)
                os.dup2(words, 2)
                os.kill(os.getpid(), signal.SIGSTOP)
                code = act(action, Path(root))
            except BaseException:  # noqa: BLE001 - the test wants to see it
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
