"""Where the time goes until ranks work: unpacking, squashfuse, a kernel mount, and the same read ahead.

The file is dropped from the page cache before each cold way, and read into it before each warm one. The work
after the start is reading the Python files and libraries of the image (what `import torch` does to a file
system) in each rank, or a command of one's own in each rank.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import SqshpipeError, ToolError
from pipeline.node import page_cache, prefetch, prewarm_on_node, profile, run, shared_mount
from pipeline.store import profiles
from pipeline.system import process, untrusted
from pipeline.system.mount import Kind

FIRST_RANK = ("/bin/sh", "-c", ":")
MAX_FILES = 4000
RANKS = (1, 8)
_TRIES = 20

Ahead = Literal["nothing", "profile", "whole file"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds to the first rank, and then of work, from the first rank's first open to the last one's last
    read; bytes that the node read from the store until then. `note` says why something is None.
    """

    way: str
    ranks: int
    warm: bool
    first_rank: float | None
    work: float | None
    first_bytes: int | None = None
    bytes: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to provide the image's files: `kind` of mount (None: unpacked), `ahead`: what is prefetched."""

    name: str
    kind: Kind | None
    ahead: Ahead = "nothing"


WAYS = (
    Way(name="unpacked", kind=None),
    Way(name="squashfuse", kind="fuse"),
    Way(name="squashfuse, profile", kind="fuse", ahead="profile"),
    Way(name="squashfuse, whole file", kind="fuse", ahead="whole file"),
    Way(name="kernel mount", kind="kernel"),
    Way(name="kernel mount, profile", kind="kernel", ahead="profile"),
    Way(name="kernel mount, whole file", kind="kernel", ahead="whole file"),
)


def bench(
    image: run.ImageFile, scratch: Path, command: Sequence[str] = (), *, ranks: Sequence[int] = RANKS
) -> Iterator[Timing]:
    """Time each way on this node, one after the other; `scratch` takes the unpacked image for a while.

    What is read ahead is measured cold. A profile is recorded where the image has none.
    """
    with _own_folder(scratch) as own:
        made, why = image, ""
        try:
            made = _profiled(image, own, command)
        except (SqshpipeError, OSError) as error:
            why = error.headline if isinstance(error, SqshpipeError) else str(error)
        for count in ranks:
            for way in WAYS:
                for warm in (False, True) if way.ahead == "nothing" else (False,):
                    if way.ahead == "profile" and why:
                        none = Timing(
                            way=way.name, ranks=count, warm=warm, first_rank=None, work=None, note=why
                        )
                        yield none
                        continue
                    yield _attempt(way, made, own, command, count, warm=warm)


def _profiled(image: run.ImageFile, own: Path, command: Sequence[str]) -> run.ImageFile:
    """The image with a start-up profile: the release's own, else one recorded from the measured work."""
    if prefetch.ranges(image):
        return image
    with _own_node_folder():
        made, _ = profile.of(image, lambda root: _work(root, command, 1))
    folder = own / "profile"
    folder.mkdir()
    (folder / "startup-1.json").write_bytes(profiles.to_bytes(made))
    return dataclasses.replace(image, startup=folder)


def _attempt(
    way: Way, image: run.ImageFile, own: Path, command: Sequence[str], ranks: int, *, warm: bool
) -> Timing:
    """A way that this node or user does not have is reported, and the others are still measured."""
    none = Timing(way=way.name, ranks=ranks, warm=warm, first_rank=None, work=None)
    try:
        if warm:
            prewarm_on_node.into_page_cache(image.path, None)
        else:
            _forget(image.path)
        store = _Store(image.path)
        with _own_node_folder():
            began = time.monotonic()
            with _appeared(way, image, own) as root:
                first = _first(root, ranks) - began
                first_bytes = store.brought()
                work = _work(root, command, ranks)
                read = store.brought()  # before the mount goes, and pages with it
        return dataclasses.replace(none, first_rank=first, work=work, first_bytes=first_bytes, bytes=read)
    except SqshpipeError as error:
        return dataclasses.replace(none, note=error.headline)
    except OSError as error:
        return dataclasses.replace(none, note=str(error))


def _is_known(file: Path) -> bool:
    """Whether the kernel says what is cached: of other users' files it says that all of it is."""
    return os.geteuid() in (0, file.stat().st_uid)


def _forget(file: Path) -> None:
    """Start cold. Pages that somebody uses at that moment stay, such as a server that is just ending."""
    page_cache.forget(file)
    for _ in range(_TRIES if _is_known(file) else 0):
        if page_cache.resident(file) == 0:
            return
        time.sleep(0.1)
        page_cache.forget(file)


class _Store:
    """Counts what comes from the store: what a file has in the page cache more than at the beginning."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known = _is_known(file)
        self._before = page_cache.resident(file) if self._known else 0

    def brought(self) -> int | None:
        return max(0, page_cache.resident(self._file) - self._before) if self._known else None


@contextmanager
def _appeared(way: Way, image: run.ImageFile, own: Path) -> Iterator[Path]:
    """The folder with the image's files, for the length of the block."""
    if way.ahead == "whole file":
        prewarm_on_node.into_page_cache(image.path, None)
    if way.kind is None:
        tool = process.which("unsquashfs", hint="apt install squashfs-tools")
        folder = own / "root"
        try:
            # it exits with 2 when it cannot set an attribute, as an ordinary user cannot set all
            process.run([tool, "-no-progress", "-d", folder, image.path], timeout=3600, check=False)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    ahead = prefetch.running(image) if way.ahead == "profile" else contextlib.nullcontext()
    with ahead, run.held(image, kind=way.kind) as mounted:
        yield mounted.root


def _first(root: Path, ranks: int) -> float:
    """Start so many ranks at once; when the first of them had run."""

    def one(_: int) -> float:
        _run(root, FIRST_RANK)
        return time.monotonic()

    with ThreadPoolExecutor(ranks) as pool:
        return min(pool.map(one, range(ranks)))


def _run(root: Path, command: Sequence[str]) -> None:
    """A rank in the image, in the same way whatever made its files appear."""
    done = run.capture_in(root, command, timeout=3600)
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise SqshpipeError(f"{command[0]} failed in the image with exit code {done.returncode}: {why}")


def _work(root: Path, command: Sequence[str], ranks: int) -> float:
    """Seconds in which all ranks do it at once."""
    began = time.monotonic()
    if command:
        with ThreadPoolExecutor(ranks) as pool:
            list(pool.map(lambda _: _run(root, command), range(ranks)))
        return time.monotonic() - began
    return _forked(lambda: _read_python(root), ranks)


def _forked(work: Callable[[], object], count: int) -> float:
    """Seconds from the start of the first of so many processes to the end of the last."""
    began = time.monotonic()
    children = []
    for _ in range(count):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work()
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    failed = [child for child in children if os.waitpid(child, 0)[1] != 0]
    if failed:
        raise ToolError(f"{len(failed)} of {count} ranks could not read the image")
    return time.monotonic() - began


def _read_python(root: Path) -> None:
    """Read the Python files and libraries of a tree, as an import does."""
    read = 0
    # The image's author chose the names: only regular files are read, no symlink, pipe or device.
    for _, names, files, folder in os.fwalk(root):
        names.sort()
        for name in sorted(files):
            if name.endswith((".py", ".pyc", ".so")):
                with contextlib.suppress(OSError):
                    _read(untrusted.open_regular(name, dir_fd=folder))
                    read += 1
                if read >= MAX_FILES:
                    return


def _read(descriptor: int) -> None:
    """Read an open file to its end, and close it."""
    with open(descriptor, "rb", buffering=0) as file:
        while file.read(4 << 20):
            pass


@contextmanager
def _own_folder(scratch: Path) -> Iterator[Path]:
    """A folder of a name that nobody foresees, and ours alone: /tmp is everybody's."""
    own = Path(tempfile.mkdtemp(prefix="sqshpipe-bench-", dir=scratch))
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


@contextmanager
def _own_node_folder() -> Iterator[None]:
    """Mounts of a measurement must not be shared with jobs that run here."""
    before = os.environ.get("SQSHPIPE_NODE_DIR")
    folder = shared_mount.node_folder() / f"bench-{os.getpid()}"
    os.environ["SQSHPIPE_NODE_DIR"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["SQSHPIPE_NODE_DIR"]
        else:
            os.environ["SQSHPIPE_NODE_DIR"] = before
        with contextlib.suppress(OSError):
            (folder / "prefetch").rmdir()
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
