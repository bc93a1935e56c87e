"""Open files below folders that an image, a node or another user controls.

Every name is opened through a directory descriptor, without following a symlink that could lead outside,
without blocking on a pipe, and the opened file is checked, never its name. Plain `os` calls, for any kernel.
Standard library only.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LINKS = 40
"""As many symlinks as the kernel follows in one path (path_resolution(7))."""


class NotRegularError(OSError):
    """The name is there, but it is not a regular file (or it is too large, or not owned as required)."""


def open_folder(path: str | Path, *, dir_fd: int | None = None) -> int:
    """Open a folder that is no symlink; the caller closes the descriptor. Raises OSError."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)


@contextmanager
def folder(path: str | Path, *, dir_fd: int | None = None) -> Iterator[int]:
    """`open_folder` for the length of a block."""
    descriptor = open_folder(path, dir_fd=dir_fd)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_regular(name: str | Path, *, dir_fd: int | None = None, follow: bool = False) -> int:
    """Open a regular file for reading; the caller closes the descriptor.

    Raises NotRegularError for a pipe, device, socket or folder, OSError (ELOOP) for a symlink, which only
    `follow` allows: for a name that the user of the command gave.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(name, flags, dir_fd=dir_fd)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotRegularError(errno.EINVAL, "not a regular file", str(name))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(name: str | Path, *, limit: int, dir_fd: int | None = None) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises NotRegularError, OSError."""
    descriptor = open_regular(name, dir_fd=dir_fd)
    try:
        return _read(descriptor, str(name), limit)
    finally:
        os.close(descriptor)


def create_exclusive(name: str | Path, *, mode: int = 0o600, dir_fd: int | None = None) -> int:
    """Create a file that was not there, for writing; the caller closes the descriptor.

    Never writes through a planted name: O_EXCL refuses symlinks and files alike. Raises FileExistsError and
    other OSErrors.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, mode, dir_fd=dir_fd)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotRegularError(errno.EINVAL, "not a regular file", str(name))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_in_root(root: int, path: str, *, limit: int) -> bytes:
    """The content of a regular file, `path` resolved as if the folder `root` were "/".

    Raises NotRegularError, and what open_in_root raises.
    """
    descriptor = open_in_root(root, path)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotRegularError(errno.EINVAL, "not a regular file", path)
        # The descriptor is O_PATH: its entry below /proc opens the very same file, whatever its name is now.
        reading = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(descriptor)
    try:
        return _read(reading, path, limit)
    finally:
        os.close(reading)


def open_in_root(root: int, path: str) -> int:
    """An O_PATH descriptor of `path` below the folder `root`; the caller closes it.

    Symlinks are resolved as in a chroot: an absolute target starts at `root`, ".." never leaves it. Raises
    FileNotFoundError, NotADirectoryError, OSError (ELOOP) after 40 symlinks.
    """
    descriptor, missing = walk_in_root(root, path)
    if missing:
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return descriptor


def walk_in_root(root: int, path: str) -> tuple[int, list[str]]:
    """As `open_in_root`, but the last names of `path` need not be there.

    Gives an O_PATH descriptor of the last part of it that is there, and the names that are missing below it.
    Raises NotADirectoryError, OSError (ELOOP), FileNotFoundError when ".." follows a missing name.
    """
    stack = [os.dup(root)]  # the folders from the root down; the last one is where the next name is looked up
    try:
        todo = path.split("/")[::-1]
        links = 0
        while todo:
            name = todo.pop()
            if name in ("", "."):
                continue
            if name == "..":
                if len(stack) > 1:
                    os.close(stack.pop())
                continue
            try:
                target = _step(stack, name)
            except FileNotFoundError:
                missing = [name, *(part for part in reversed(todo) if part not in ("", "."))]
                if ".." in missing:
                    raise
                return stack.pop(), missing
            if target is None:
                continue
            links += 1
            if links > _LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if target.startswith("/"):
                while len(stack) > 1:
                    os.close(stack.pop())
            todo += target.split("/")[::-1]
        return stack.pop(), []
    finally:
        for descriptor in stack:
            os.close(descriptor)


def _step(stack: list[int], name: str) -> str | None:
    """Open `name` in the last folder of `stack` and put it there; the target instead when it is a symlink."""
    found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=stack[-1])
    if not stat.S_ISLNK(os.fstat(found).st_mode):
        stack.append(found)
        return None
    try:
        return os.readlink("", dir_fd=found)
    finally:
        os.close(found)


def _read(descriptor: int, name: str, limit: int) -> bytes:
    """All bytes of an open regular file; bounded, also when it grows meanwhile."""
    pieces: list[bytes] = []
    left = limit + 1
    while left and (piece := os.read(descriptor, min(left, 1 << 20))):
        pieces.append(piece)
        left -= len(piece)
    if not left:
        raise NotRegularError(errno.EFBIG, f"larger than {limit} bytes", name)
    return b"".join(pieces)
