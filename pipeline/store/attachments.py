"""The files attached to a release: signatures, SBOM, findings. Each must be a regular file of the store.

A user who can write to a store must not make another user read, copy or publish a file from elsewhere. So
each folder below the root is opened without following a symlink, and each file is checked after the open.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from pipeline.errors import PublishError
from pipeline.store import folders
from pipeline.store.layout import Layout
from pipeline.store.record import Record
from pipeline.system import atomic, untrusted

LIMIT = 256 << 20
"""Bytes of one attachment: an SBOM of a large image has some tens of megabytes."""


_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")


class NotOfTheStoreError(PublishError):
    """A name of the store that is a symlink, a pipe or something else that is not the store's own file."""


def names(layout: Layout, record: Record) -> list[str]:
    """The names of the files attached to a release, sorted.

    Raises NotOfTheStoreError when a folder on the way is a symlink.
    """
    with _opened(layout, record) as folder:
        if folder is None:
            return []
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith("."))


def read(layout: Layout, record: Record, name: str, *, limit: int = LIMIT) -> bytes | None:
    """The bytes of one attachment; None when nothing has this name.

    Raises NotOfTheStoreError when it is not a regular file of the store or larger than `limit`, PublishError
    when it cannot be read.
    """
    path = _folder(layout, record) / name
    with atomic.translate_errors(f"reading {path}"), _opened(layout, record) as folder:
        file = None if folder is None else _open(path, folder)
        if file is None:
            return None
        with os.fdopen(file, "rb") as stream:
            content = stream.read(limit + 1)
    if len(content) > limit:
        raise NotOfTheStoreError(
            f"{path} is larger than {limit >> 20} MiB", hint="look who made it, and remove it"
        )
    return content


def add(layout: Layout, record: Record, name: str, content: bytes) -> None:
    """Attach a file to a release; one that is there stays as it is. Raises as `read` does."""
    path = _folder(layout, record) / name
    check_name(record, name)
    check(layout, record)
    folders.make(path.parent)
    if read(layout, record, name) is None:
        atomic.create(path, content)


def check_name(record: Record, name: str) -> None:
    """Raise NotOfTheStoreError when nothing beside a release can have this name."""
    if not _NAME.fullmatch(name):
        raise NotOfTheStoreError(
            f"{name!r} beside {record.image}:{record.version} is not a name that sqshpipe gives",
            hint="look who made it, and remove it",
        )


def check(layout: Layout, record: Record) -> None:
    """Raise NotOfTheStoreError when a folder on the way to what is attached to a release is a symlink."""
    with _opened(layout, record):
        return


def open_file(layout: Layout, path: Path) -> int | None:
    """Open a file below the root for reading; the caller closes it. None when it is missing.

    Raises NotOfTheStoreError when it, or a folder on the way, is something else.
    """
    with _below(layout, path.parent) as folder:
        return None if folder is None else _open(path, folder)


def _folder(layout: Layout, record: Record) -> Path:
    return layout.attachments(record.image, record.version, record.platform)


def _opened(layout: Layout, record: Record) -> AbstractContextManager[int | None]:
    return _below(layout, _folder(layout, record))


@contextmanager
def _below(layout: Layout, path: Path) -> Iterator[int | None]:
    """A folder below the root, opened step by step; None when it is not there."""
    with ExitStack() as steps:
        folder: int | None = None
        try:
            folder = os.open(layout.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            steps.callback(os.close, folder)
            for name in path.relative_to(layout.root).parts:
                folder = untrusted.open_folder(name, dir_fd=folder)
                steps.callback(os.close, folder)
        except FileNotFoundError:
            folder = None
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            raise _refused(path) from error
        yield folder


def _open(path: Path, folder: int) -> int | None:
    try:
        file = untrusted.open_regular(path.name, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        status = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISREG(status.st_mode):
            raise
        raise _refused(path) from error
    status = os.fstat(file)
    if status.st_nlink > 1 and status.st_uid != os.fstat(folder).st_uid:
        os.close(file)  # a hard link to a file from elsewhere
        raise _refused(path)
    return file


def _refused(path: Path) -> NotOfTheStoreError:
    return NotOfTheStoreError(
        f"{path} is a link or no regular file, so it is not the store's own: it is neither read nor copied",
        hint="look who made it, and remove it",
    )
