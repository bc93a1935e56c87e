"""The files of a build context: which ones are sent to the builder, their fingerprints, and a copy of them.

They are hashed while they are copied, and the builder gets only the copy: so the bytes that were hashed are
the bytes that are built. Names,
contents, link targets and executable bits are fingerprinted. Times and the other bits of the mode are copied
only. Owners, extended attributes and hard links are neither fingerprinted nor copied.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from pipeline.errors import ConfigError
from pipeline.image.dockerignore import Ignore, State
from pipeline.system.disk import cannot_write
from pipeline.system.hashing import hashed
from pipeline.system.untrusted import create_exclusive, open_regular

FOLDER = "d"
_BLOCK = 1 << 20


def members(context: Path, ignore: Ignore) -> Iterator[tuple[str, str]]:
    """What is sent: the path of each folder, file and symlink, relative with /, and where it lies.

    A folder comes before what it holds. Sockets and pipes are never sent. Raises ConfigError for a folder
    that cannot be read.
    """
    root = os.fspath(context)
    sent: set[str] = set()
    todo: list[tuple[str, bool, State | None]] = [("", False, None)]
    while todo:
        folder, skipped, state = todo.pop()
        for name, is_folder in _listed(f"{root}/{folder}" if folder else root, skipped=skipped):
            path = f"{folder}/{name}" if folder else name
            left_out, below = ignore.step(path, state) if ignore.patterns else (False, ())
            if is_folder and not (left_out and not ignore.may_hold_exceptions(path)):
                todo.append((path, left_out, below))
            if left_out:
                continue
            if skipped:  # then the folders above it are sent as well
                for end in (i for i, character in enumerate(path) if character == "/"):
                    if path[:end] not in sent:
                        sent.add(path[:end])
                        yield path[:end], f"{root}/{path[:end]}"
            if path not in sent:
                if is_folder:
                    sent.add(path)
                yield path, f"{root}/{path}"


def _listed(folder: str, *, skipped: bool) -> list[tuple[str, bool]]:
    """Names in `folder`, and which are folders, without sockets and pipes."""
    try:
        with os.scandir(folder) as entries:
            return [
                (entry.name, entry.is_dir(follow_symlinks=False))
                for entry in entries
                if not _is_pipe_or_socket(entry)
            ]
    except PermissionError as error:
        if skipped:  # as BuildKit: what is left out need not be readable
            return []
        _refuse(folder, error)
    except OSError as error:
        _refuse(folder, error)


def _is_pipe_or_socket(entry: os.DirEntry[str]) -> bool:
    if entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False) or entry.is_symlink():
        return False
    mode = entry.stat(follow_symlinks=False).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def fingerprints(context: Path, ignore: Ignore, *, copy_to: Path | None = None) -> dict[str, str]:
    """The fingerprint of each path that is sent.

    ``x:`` or ``-:`` and sha256 for a file, executable or not, ``l:`` and target for a symlink, ``d`` for a
    folder. Of the mode only the owner's executable bit counts, since that is all that git keeps.

    With `copy_to`, a folder that is not there yet, the same bytes are also written there. A file is read in
    pieces of 1 MiB. Raises ConfigError for what cannot be read and for a device, ToolError for a full disk.
    """
    found: dict[str, str] = {}
    folders: list[tuple[str, os.stat_result]] = []
    if copy_to is not None:
        _make_folder(copy_to)
    for path, source in members(context, ignore):
        target = None if copy_to is None else f"{copy_to}/{path}"
        try:
            status = os.lstat(source)
            if stat.S_ISLNK(status.st_mode):
                found[path] = _symlink(source, target)
            elif stat.S_ISDIR(status.st_mode):
                found[path] = FOLDER
                if target is not None:
                    _make_folder(Path(target))
                    folders.append((target, status))
            else:
                found[path] = _file(source, target, status)
        except OSError as error:
            _refuse(source, error)
    for target, status in reversed(folders):
        _set_status(target, status)
    return found


def size_of(context: Path, ignore: Ignore) -> tuple[int, int]:
    """How many bytes, in whole blocks, and how many names a copy takes. Raises ConfigError."""
    size = names = 0
    for _, source in members(context, ignore):
        try:
            status = os.lstat(source)
        except OSError as error:
            _refuse(source, error)
        names += 1
        if stat.S_ISREG(status.st_mode):
            size += -(-status.st_size // 4096) * 4096
    return size, names


def _symlink(source: str, target: str | None) -> str:
    leads_to = os.readlink(source)  # noqa: PTH115 - plans ask for many thousands
    if target is not None:
        try:
            os.symlink(leads_to, target)  # noqa: PTH211
        except OSError as error:
            raise cannot_write(error, Path(target)) from error
    return f"l:{leads_to}"


def _file(source: str, target: str | None, status: os.stat_result) -> str:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(
            f"{source} is a device, which cannot be part of a build", hint="name it in .dockerignore"
        )
    reading = open_regular(source)
    writing = -1
    try:
        status = os.fstat(reading)  # of what is read, whatever the name is now
        if target is not None:
            writing = _created(target)
        with os.fdopen(reading, "rb", buffering=0, closefd=False) as file:
            keep = None if target is None else functools.partial(_write, writing, target)
            digest = hashed(file, keep)
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)
    if target is not None:
        _set_status(target, status)
    return ("x:" if status.st_mode & 0o100 else "-:") + digest.hexdigest()


def _created(target: str) -> int:
    try:
        return create_exclusive(target)
    except OSError as error:
        raise cannot_write(error, Path(target)) from error


def _write(descriptor: int, target: str, block: bytes) -> None:
    left = memoryview(block)
    try:
        while left:
            left = left[os.write(descriptor, left) :]
    except OSError as error:
        raise cannot_write(error, Path(target)) from error


def _make_folder(target: Path) -> None:
    try:
        target.mkdir(mode=0o700)
    except OSError as error:
        raise cannot_write(error, target) from error


def _set_status(target: str, status: os.stat_result) -> None:
    """Mode and time as in the context: a builder puts both into the image."""
    try:
        os.chmod(target, stat.S_IMODE(status.st_mode))  # noqa: PTH101
    except OSError as error:
        raise cannot_write(error, Path(target)) from error
    with contextlib.suppress(OSError):  # a file system that cannot store it: no build depends on a time
        os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))


def _refuse(path: str, error: OSError) -> NoReturn:
    reason = "a symbolic link now" if error.errno == errno.ELOOP else error.strerror
    raise ConfigError(f"{path} cannot be read: {reason}") from error
