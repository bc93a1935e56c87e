"""Runs commands in an image that this node mounts once: for hosts without enroot, and for trying images."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipeline.errors import ToolError
from pipeline.node import enter, prefetch, shared_mount, signed
from pipeline.node.image_file import ImageFile, image_file
from pipeline.system import process, self_command
from pipeline.system.mount import Kind

__all__ = ["ImageFile", "image_file", "run"]

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)

_counter = itertools.count()


@contextlib.contextmanager
def held(image: ImageFile, *, kind: Kind | None = None) -> Iterator[shared_mount.SharedMount]:
    """The image's shared mount for as long as the block lasts; blocks of one process may overlap."""
    holder = f"{shared_mount.holder_of(os.getpid())}-{next(_counter)}"
    with signed.opened(image) as opened:
        mounted = shared_mount.acquire(image.path, image.sha256, holder, kind=kind, opened=opened)
    try:
        yield mounted
    finally:
        shared_mount.release(image.sha256, holder)


def run(
    image: ImageFile,
    command: Sequence[str],
    *,
    binds: Sequence[enter.Bind] = (),
    data: Sequence[tuple[ImageFile, str]] = (),
    env: Sequence[tuple[str, str]] = (),
    entrypoint: bool = False,
    gpu: bool = True,
    kind: Kind | None = None,
) -> int:
    """Run a command in the image with our stdin, stdout and stderr, pass signals on, and give its exit code.

    Each file of `data` is mounted once on this node too, and seen in the folder that is named beside it.

    A command that a signal ended gives 128 and the signal's number, as shells do.
    """
    with contextlib.ExitStack() as mounts:
        mounted = mounts.enter_context(held(image, kind=kind))
        shown = [
            enter.Bind(source=str(mounts.enter_context(held(file, kind=kind)).root), target=inside)
            for file, inside in data
        ]
        mounts.enter_context(prefetch.running(image))
        scratch = mounts.enter_context(_scratch())
        entering = enter.Entering(
            image=str(mounted.root),
            scratch=str(scratch),
            command=tuple(command),
            binds=(*shown, *binds),
            env=tuple(env),
            entrypoint=entrypoint,
            gpu=gpu,
        )
        return _follow(entering)


def capture_in(
    root: Path,
    command: Sequence[str],
    *,
    binds: Sequence[enter.Bind] = (),
    env: Sequence[tuple[str, str]] = (),
    timeout: float | None = None,
    on_line: Callable[[str], None] | None = None,
) -> process.Completed:
    """Run a command in a folder that holds the image, a mount or unpacked files, and keep what it prints.

    Its exit code is the caller's to judge. `on_line` gets each line of the command's output
    as it comes.
    """
    with _scratch() as scratch:
        entering = enter.Entering(
            image=str(root),
            scratch=str(scratch),
            command=tuple(command),
            binds=tuple(binds),
            env=tuple(env),
        )
        inside = self_command.module(enter.__name__, entering.as_json())
        return process.run(inside, check=False, timeout=timeout, on_line=on_line)


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """An empty folder for a new root; the tmpfs on it is seen in the command's namespace only."""
    folder = shared_mount.node_folder() / f"root-{os.getpid()}-{next(_counter)}"
    folder.mkdir(exist_ok=True)
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _follow(entering: enter.Entering) -> int:
    """Fork, become the command in the child, and stay with it to its end: the mount is ours to release."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for number in _PASSED_ON:
                signal.signal(number, signal.SIG_DFL)
            code = enter.attempt(entering)
        finally:
            sys.stderr.flush()
            os._exit(code)
    before = {number: signal.signal(number, lambda got, _: os.kill(child, got)) for number in _PASSED_ON}
    try:
        _, status = os.waitpid(child, 0)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def holder_for_caller(pid: int | None) -> str:
    """Who holds a mount that a command makes for its caller: that process, by default our parent."""
    caller = os.getppid() if pid is None else pid
    if caller <= 1:
        raise ToolError(
            "nobody to hold the mount for: the caller has ended",
            hint="name a living process with --holder-pid",
        )
    return shared_mount.holder_of(caller)
