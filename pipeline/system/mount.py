"""Mounts a .sqsh: by the kernel where that is allowed, else with squashfuse as any user can."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import ToolError
from pipeline.system import mount_api, process
from pipeline.system.log import log

Kind = Literal["kernel", "fuse"]
HINT = "mounting needs root with loop devices, or squashfuse and /dev/fuse (apt install squashfuse)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mounted:
    """A .sqsh that can be read below ``folder``; ``device`` is the number that stat(2) shows there."""

    file: Path
    folder: Path
    kind: Kind
    device: int


@contextlib.contextmanager
def mounted(file: Path, folder: Path, *, kind: Kind | None = None) -> Iterator[Mounted]:
    """Mount ``file`` on the existing ``folder``, read-only, and unmount it on the way out.

    ``kind`` None takes the kernel where that works and squashfuse elsewhere. Raises ToolError when it cannot
    be mounted.
    """
    used = mount(file, folder, kind=kind)
    try:
        yield Mounted(file=file, folder=folder, kind=used, device=folder.stat().st_dev)
    finally:
        unmount(folder, used)


def mount(file: Path, folder: Path, *, kind: Kind | None = None, opened: int | None = None) -> Kind:
    """As `mounted`, but stays mounted; gives back how it was done, for `unmount`.

    `opened` is the file, opened by the caller: it is mounted, whatever has its name now.
    """
    if kind == "kernel" or (kind is None and os.geteuid() == 0):
        try:
            _kernel_mount(file, folder, opened)
        except ToolError as error:
            if kind == "kernel":
                raise
            log.debug("the kernel would not mount it, squashfuse does", why=error.headline)
        else:
            return "kernel"
    _fuse_mount(file if opened is None else Path(f"/proc/{os.getpid()}/fd/{opened}"), folder)
    return "fuse"


def unmount(folder: Path, kind: Kind) -> None:
    """Undo `mount`. A mount that is still in use is detached and goes when its last user does.

    Raises ToolError when it cannot be undone.
    """
    if kind == "kernel":  # no program: what was mounted without one must not stay for the lack of one
        try:
            mount_api.unmount(folder)
        except OSError as error:
            raise ToolError(f"cannot unmount {folder}: {error.strerror}") from error
        return
    argv = _fusermount()
    if process.run([*argv, folder], check=False, timeout=60).returncode != 0:
        process.run([*argv, "-z", folder], timeout=60)


def _kernel_mount(file: Path, folder: Path, opened: int | None) -> None:
    # nosuid and nodev as enroot mounts it: neither means anything inside a job
    try:
        mount_api.mount_squashfs(file, folder, opened=opened)
    except OSError as error:
        raise ToolError(f"the kernel does not mount {file}: {error.strerror}", hint=HINT) from error


def _fuse_mount(file: Path, folder: Path) -> None:
    process.run(
        [process.which("squashfuse", hint=HINT), "-o", "ro,nosuid,nodev", file, folder], hint=HINT, timeout=60
    )
    if not os.path.ismount(folder):
        raise ToolError(f"squashfuse did not mount {file} on {folder}", hint=HINT)


def _fusermount() -> tuple[Path | str, ...]:
    for name in ("fusermount3", "fusermount"):
        with contextlib.suppress(ToolError):
            return process.which(name, hint=HINT), "-u"
    raise ToolError("fusermount3 is not installed (not in PATH)", hint=HINT)
