"""Records what a start asks of the squashfs server: the preads of a squashfuse of our own, seen by strace.

A mount of its own has nothing cached, so every block that the command needs is read once, in order and
without read-ahead, whatever the page cache holds of the file. That works for ordinary users: squashfuse is
their own child process. The helper that mounts (fusermount, setuid) is not traced, since a traced program
gains no rights.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipeline.errors import ToolError
from pipeline.node import run as running
from pipeline.node import shared_mount
from pipeline.node.run import ImageFile
from pipeline.squashfs import startup
from pipeline.squashfs.reader import SquashfsImage
from pipeline.squashfs.startup import Profile, Range
from pipeline.system import mount as mounts
from pipeline.system import process

HINT = "a profile is recorded with strace and squashfuse (apt install strace squashfuse) and /dev/fuse"
_PREAD = re.compile(r"pread64(?:\(| resumed).*, (\d+), (\d+)\)\s+= (\d+)$")
_MOUNTED_WITHIN = 30.0
T = TypeVar("T")
_ENDS_WITHIN = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A profile, and how the command ended that was recorded."""

    profile: Profile
    done: process.Completed


def record(
    image: ImageFile,
    command: Sequence[str],
    *,
    timeout: float | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Recorded:
    """Run a command in the image, on a mount of its own, and record what is read of the file.

    Its exit code is the caller's to judge. Raises ToolError when strace or squashfuse is missing or refused,
    FormatError when the image is damaged.
    """
    profile, done = of(
        image, lambda root: running.capture_in(root, command, timeout=timeout, on_line=on_line)
    )
    return Recorded(profile=profile, done=done)


def of(image: ImageFile, work: Callable[[Path], T]) -> tuple[Profile, T]:
    """The profile of what `work` reads of a mount of its own, and what it gives. Raises as `record`."""
    with SquashfsImage.open(image.path) as opened, _folder() as folder:
        trace = folder / "trace"
        with _traced_mount(image.path.resolve(), folder / "root", trace):
            done = work(folder / "root")
        with trace.open(encoding="utf-8", errors="replace") as lines:
            reads = parse(lines)
        return startup.describe(opened, image.sha256, reads), done


def parse(lines: Iterable[str]) -> list[Range]:
    """(position, length) of the reads in strace's lines, in their order."""
    found = (_PREAD.search(line.rstrip()) for line in lines)
    return [(int(each[2]), int(each[3])) for each in found if each]


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="profile-", dir=shared_mount.node_folder()) as name:
        folder = Path(name)
        (folder / "root").mkdir()
        yield folder


@contextlib.contextmanager
def _traced_mount(file: Path, root: Path, trace: Path) -> Iterator[None]:
    """A squashfuse in the foreground under strace, until the block ends; `trace` then has all its reads."""
    strace, squashfuse = (process.which(each, hint=HINT) for each in ("strace", "squashfuse"))
    tracing: list[str | Path] = ["-qq", "-s0", "-etrace=pread64", "-esignal=none", "-P", file, "-o", trace]
    argv = [strace, *tracing, squashfuse, "-f", "-o", "ro,nosuid,nodev", file, root]
    stop = threading.Event()
    ended: list[process.Completed | ToolError] = []

    def serve() -> None:
        try:
            ended.append(process.run(argv, check=False, stop=stop))
        except ToolError as error:
            ended.append(error)

    server = threading.Thread(target=serve, name="traced squashfuse")
    server.start()
    try:
        end = time.monotonic() + _MOUNTED_WITHIN
        while not os.path.ismount(root):
            if ended or time.monotonic() > end:
                raise _not_mounted(file, ended)
            time.sleep(0.01)
        yield
    finally:
        if os.path.ismount(root):
            mounts.unmount(root, "fuse")
        server.join(_ENDS_WITHIN)  # it ends by itself, since nothing is mounted
        stop.set()
        server.join()


def _not_mounted(file: Path, ended: list[process.Completed | ToolError]) -> ToolError:
    why = ended[0] if ended else f"nothing is mounted after {_MOUNTED_WITHIN:g} s"
    if isinstance(why, process.Completed):
        why = (why.stderr.strip() or f"exit code {why.returncode}")[-300:]
    return ToolError(f"squashfuse under strace does not mount {file}: {why}", hint=HINT)
