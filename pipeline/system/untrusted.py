"""Open files below folders that an image, a node or another user controls.

Every name is opened through a directory descriptor, without following a symlink that could lead outside,
without blocking on a pipe, and the opened file is checked, never its name. Plain `os` calls, for any kernel.
Standard library only.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PIECE = 1 << 20
_READING = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_LINKS = 40
"""As many symlinks as the kernel follows in one path (path_resolution(7))."""


class NotRegularError(OSError):
    """The name is there, but it is not a regular file (or it is too large, or not owned as required)."""


def open_folder(path: str | Path, *, dir_fd: int | None = None) -> int:
    """Open a folder that is not a symlink; the caller closes the descriptor. Raises OSError."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)


@contextmanager
def folder(path: str | Path, *, dir_fd: int | None = None) -> Iterator[int]:
    """`open_folder` for the length of a block."""
    descriptor = open_folder(path, dir_fd=dir_fd)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_regular(
    name: str | Path, *, flags: int = os.O_RDONLY, dir_fd: int | None = None, follow: bool = False
) -> int:
    """Open a regular file, by default for reading; the caller closes the descriptor.

    Raises NotRegularError for a pipe, device, socket or folder, OSError (ELOOP) for a symlink, which only
    `follow` allows: for a name that the user of the command gave.
    """
    flags |= os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(name, flags, 0o666, dir_fd=dir_fd)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket; for writing also a pipe that nobody reads
            raise NotRegularError(errno.EINVAL, "not a regular file", str(name)) from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotRegularError(errno.EINVAL, "not a regular file", str(name))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(name: str | Path, *, limit: int, dir_fd: int | None = None) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises NotRegularError, OSError."""
    descriptor = os.open(name, _READING, dir_fd=dir_fd)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotRegularError(errno.EINVAL, "not a regular file", str(name))
        if status.st_size < _PIECE:
            content = os.read(descriptor, min(status.st_size, limit) + 1)
            if len(content) == status.st_size <= limit:
                return content  # whole, in one call: a store has thousands of small files
            os.lseek(descriptor, 0, os.SEEK_SET)
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
    return _walk(root, path)


def open_folder_to_write(path: str | Path, *, make: int | None = None) -> int:
    """Open a folder that no symlink of another user leads to; the caller closes the descriptor.

    Symlinks of root and of this process's user are followed, others are refused, whatever the kernel's
    fs.protected_symlinks is. With `make`, missing folders are made with this mode. Raises OSError, with ELOOP
    for a symlink that is refused.
    """
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found, missing = _walk(root, str(Path.cwd() / path), owners=(0, os.geteuid()), make=make)
    finally:
        os.close(root)
    try:
        if missing:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=found)
    finally:
        os.close(found)


def others_may_write(path: Path) -> bool:
    """Whether anybody may put names into this folder, or another folder in its place.

    False when the folder does not exist. Raises OSError.
    """
    try:
        name, here, above = path.lstat(), path.stat(), path.parent.stat()
    except FileNotFoundError:
        return False
    not_ours = not {name.st_uid, here.st_uid} <= {os.geteuid(), 0}
    return bool(here.st_mode & stat.S_IWOTH) or (not_ours and bool(above.st_mode & stat.S_IWOTH))


@contextmanager
def folder_to_write(path: str | Path, *, make: int | None = None) -> Iterator[int]:
    """`open_folder_to_write` for the length of a block."""
    descriptor = open_folder_to_write(path, make=make)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def replace_file(path: str | Path, content: bytes, *, mode: int = 0o644) -> None:
    """Give `path` this content, whole or not at all, in a folder where others may have planted names.

    A symlink of root or of this user is followed; what another user planted under the name is replaced where
    the folder allows it, never written to. Raises OSError.
    """
    where = Path(path)
    for _ in range(_LINKS):
        with folder_to_write(where.parent) as parent:
            target = _own_link(where.name, parent)
            if target is None:
                replace_in(parent, where.name, content, mode=mode)
                return
        where = where.parent / target
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def _refuse_device(parent: int, name: str) -> None:
    """Raise OSError where `name` is a device: root would put a file in the place of /dev/null.

    Only root makes devices, so that nobody else plants one.
    """
    with suppress(FileNotFoundError):
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise OSError(errno.EINVAL, "it is a device, not a file", name)


def replace_in(parent: int, name: str, content: bytes, *, mode: int = 0o644) -> None:
    """`replace_file` in an open folder; symlinks are replaced, a device never. Raises OSError."""
    _refuse_device(parent, name)
    temporary = f".{name[:200]}.{secrets.token_hex(8)}"
    descriptor = create_exclusive(temporary, dir_fd=parent)
    try:
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)
        os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=parent)
        raise


def _own_link(name: str, parent: int) -> str | None:
    """Where a symlink of root or of this user leads; None for anything else and for nothing."""
    try:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode) and status.st_uid in (0, os.geteuid()):
            return os.readlink(name, dir_fd=parent)
    except FileNotFoundError:
        return None
    return None


def _walk(
    root: int, path: str, *, owners: tuple[int, ...] | None = None, make: int | None = None
) -> tuple[int, list[str]]:
    """An O_PATH descriptor of what is there of `path` below `root`, and the names that are missing below it.

    `owners` are those whose symlinks are followed (None: anybody's). With `make`, missing folders are made.
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
                _drop(stack, max(1, len(stack) - 1))
                continue
            try:
                target, owner = _step(stack, name, make)
            except FileNotFoundError:
                missing = [name, *(part for part in reversed(todo) if part not in ("", "."))]
                if ".." in missing:
                    raise
                return stack.pop(), missing
            if target is None:
                continue
            links += 1
            if owners is not None and owner not in owners:
                raise OSError(errno.ELOOP, f"{name} is a symlink of user {owner}", path)
            if links > _LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if target.startswith("/"):
                _drop(stack, 1)
            todo += target.split("/")[::-1]
        return stack.pop(), []
    finally:
        _drop(stack, 0)


def _drop(stack: list[int], length: int) -> None:
    """Close the last descriptors of `stack`, down to `length`."""
    while len(stack) > length:
        os.close(stack.pop())


def _step(stack: list[int], name: str, make: int | None) -> tuple[str | None, int]:
    """Open `name` in the last folder of `stack` and put it there; of a symlink give the target and the owner.

    With `make` a folder of this mode is made where there is nothing.
    """
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        found = os.open(name, flags, dir_fd=stack[-1])
    except FileNotFoundError:
        if make is None:
            raise
        with suppress(FileExistsError):
            os.mkdir(name, make, dir_fd=stack[-1])
            _set_mode(name, make, stack[-1])
        found = os.open(name, flags, dir_fd=stack[-1])
    status = os.fstat(found)
    if not stat.S_ISLNK(status.st_mode):
        stack.append(found)
        return None, status.st_uid
    try:
        return os.readlink("", dir_fd=found), status.st_uid
    finally:
        os.close(found)


def _set_mode(name: str, mode: int, parent: int) -> None:
    """Give a folder that was just made its mode: mkdir(2) takes away what the umask says."""
    made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        if os.fstat(made).st_uid == os.geteuid():  # it is still ours
            os.fchmod(made, mode)
    finally:
        os.close(made)


def _read(descriptor: int, name: str, limit: int) -> bytes:
    """All bytes of an open regular file; bounded, also when it grows meanwhile."""
    pieces: list[bytes] = []
    left = limit + 1
    while left and (piece := os.read(descriptor, min(left, _PIECE))):
        pieces.append(piece)
        left -= len(piece)
    if not left:
        raise NotRegularError(errno.EFBIG, f"larger than {limit} bytes", name)
    return b"".join(pieces)
