"""Where the time goes until ranks work: unpacking, squashfuse, a kernel mount, and the same prewarmed.

The file is dropped from the page cache before each cold way. The work after the start is reading the Python
files and libraries of the image (what `import torch` does to a file system), or a command of one's own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import SqshpipeError
from pipeline.node import page_cache, run, shared_mount
from pipeline.system import process, untrusted
from pipeline.system.mount import Kind

FIRST_RANK = ("/bin/sh", "-c", ":")
MAX_FILES = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds to the first rank, and then of work; `note` says why there are none."""

    way: str
    first_rank: float | None
    work: float | None
    note: str = ""


def bench(image: run.ImageFile, scratch: Path, command: Sequence[str] = ()) -> Iterator[Timing]:
    """Time each way on this node, one after the other; `scratch` takes the unpacked image for a while."""
    ways: tuple[tuple[str, Callable[[], Timing]], ...] = (
        ("unpacked", lambda: _unpacked(image, scratch, command)),
        ("squashfuse", lambda: _mounted("squashfuse", image, "fuse", command, cold=True)),
        ("kernel mount", lambda: _mounted("kernel mount", image, "kernel", command, cold=True)),
        ("squashfuse, warm", lambda: _mounted("squashfuse, warm", image, "fuse", command, cold=False)),
        ("kernel mount, warm", lambda: _mounted("kernel mount, warm", image, "kernel", command, cold=False)),
    )
    for name, measure in ways:
        yield _attempt(name, measure)


def _attempt(name: str, measure: Callable[[], Timing]) -> Timing:
    """A way that this node or user does not have is told, and the others are still measured."""
    try:
        return measure()
    except SqshpipeError as error:
        return Timing(way=name, first_rank=None, work=None, note=error.headline)
    except OSError as error:
        return Timing(way=name, first_rank=None, work=None, note=str(error))


def _mounted(name: str, image: run.ImageFile, kind: Kind, command: Sequence[str], *, cold: bool) -> Timing:
    if cold:
        page_cache.forget(image.path)
    else:
        _read(untrusted.open_regular(image.path, follow=True))
    with _own_node_folder():
        began = time.monotonic()
        with run.held(image, kind=kind) as mounted:
            _run(mounted.root, FIRST_RANK)
            first = time.monotonic() - began
            return Timing(way=name, first_rank=first, work=_work(mounted.root, command))


def _unpacked(image: run.ImageFile, scratch: Path, command: Sequence[str]) -> Timing:
    # A name that nobody foresees, and a folder of ours alone: /tmp is everybody's.
    own = Path(tempfile.mkdtemp(prefix="sqshpipe-bench-", dir=scratch))
    folder = own / "root"
    page_cache.forget(image.path)
    began = time.monotonic()
    try:
        tool = process.which("unsquashfs", hint="apt install squashfs-tools")
        # it exits with 2 when it cannot set an attribute, as an ordinary user cannot set all
        process.run([tool, "-no-progress", "-d", folder, image.path], timeout=3600, check=False)
        with _own_node_folder():
            _run(folder, FIRST_RANK)
            first = time.monotonic() - began
            return Timing(way="unpacked", first_rank=first, work=_work(folder, command))
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _run(root: Path, command: Sequence[str]) -> None:
    """A rank in the image, in the same way whatever made its files appear."""
    done = run.capture_in(root, command, timeout=3600)
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise SqshpipeError(f"{command[0]} failed in the image with exit code {done.returncode}: {why}")


def _work(root: Path, command: Sequence[str]) -> float:
    if not command:
        return _read_python(root)
    began = time.monotonic()
    _run(root, command)
    return time.monotonic() - began


def _read_python(root: Path) -> float:
    """Seconds to read the Python files and libraries of a tree, as an import does."""
    began = time.monotonic()
    read = 0
    # The image's author chose the names: what is no regular file (a symlink, a pipe, a device) is not read.
    for _, names, files, folder in os.fwalk(root):
        names.sort()
        for name in sorted(files):
            if name.endswith((".py", ".pyc", ".so")):
                with contextlib.suppress(OSError):
                    _read(untrusted.open_regular(name, dir_fd=folder))
                    read += 1
                if read >= MAX_FILES:
                    return time.monotonic() - began
    return time.monotonic() - began


def _read(descriptor: int) -> None:
    """Read an open file to its end, and close it."""
    with open(descriptor, "rb", buffering=0) as file:
        while file.read(4 << 20):
            pass


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
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
