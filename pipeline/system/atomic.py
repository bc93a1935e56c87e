"""The few file-system steps that everything in a store is built from.

`create` makes a file that was not there and never replaces one; `replace` swaps a cache for its next state.
Both write a temporary file in the same folder first, so that a kill at any moment leaves either the old state
or the new one, and a temporary name that `prune` clears away. Nothing here needs flock or extended
attributes.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pipeline.errors import PublishError, SqshpipeError, ToolError
from pipeline.system import exclusive
from pipeline.system.disk import is_full
from pipeline.system.temporary import temporary_name

READ_ONLY = 0o444
CACHE_MODE = 0o644

_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_LATE = frozenset({errno.ESTALE, errno.ENOENT})
_LATE_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)

Result = TypeVar("Result")


_REFUSED_HINT = "publish as the user that owns the store; a server with root_squash refuses root itself"


@contextmanager
def translate_errors(doing: str, *, refused: str = _REFUSED_HINT) -> Iterator[None]:
    """Turn an OSError into the one sentence that a person can act on; `refused` is the hint for a lack of
    rights.
    """
    try:
        yield
    except SqshpipeError:
        raise
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        if is_full(error):
            raise ToolError(
                f"no space left while {doing}{where}",
                hint="free space (see sqshpipe store usage and store prune) or raise the quota; run it again",
            ) from error
        if error.errno in _REFUSED:
            raise PublishError(
                f"not allowed while {doing}{where} ({error.strerror})",
                hint=refused,
            ) from error
        raise PublishError(
            f"the file system failed while {doing}{where} ({error.strerror})",
            hint="nothing half-done is visible; run it again",
        ) from error


def patiently(read: Callable[[], Result]) -> Result:
    """Run `read` until a name that must be there is: NFS clients see new names late and old handles as
    stale.
    """
    for pause in _LATE_SECONDS:
        try:
            return read()
        except OSError as error:
            if error.errno not in _LATE:
                raise
        time.sleep(pause)
    return read()


def sync_folder(folder: Path) -> None:
    """Write the names in `folder` to disk, so that they are there after a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot, and are synchronous anyway
            raise
    finally:
        os.close(descriptor)


def create(path: Path, content: bytes, *, mode: int = READ_ONLY) -> bool:
    """Make `path` hold `content`, complete and durable; False when the name was taken, which changes
    nothing.
    """
    temporary = _write_beside(path, content, mode)
    try:
        made = exclusive.link_noreplace(temporary, path)
    finally:
        _drop(temporary)
    if made:
        sync_folder(path.parent)
    return made


def replace(path: Path, content: bytes, *, mode: int = CACHE_MODE) -> tuple[int, int]:
    """Swap what `path` holds for `content`; a reader sees the one or the other. Gives inode and mtime
    (ns).
    """
    temporary = _write_beside(path, content, mode)
    try:
        status = temporary.stat()
        temporary.replace(path)
    except BaseException:
        _drop(temporary)
        raise
    return status.st_ino, status.st_mtime_ns


def replace_link(path: Path, target: str) -> None:
    """Make `path` a symlink to `target` (relative), in one step when there was one before."""
    temporary = path.with_name(temporary_name())
    temporary.symlink_to(target)
    try:
        temporary.replace(path)
    except BaseException:
        _drop(temporary)
        raise


def _write_beside(path: Path, content: bytes, mode: int) -> Path:
    temporary = path.with_name(temporary_name())
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        _drop(temporary)
        raise
    return temporary


def _drop(path: Path) -> None:
    """Remove one of our temporary names. One that cannot be removed is left for prune; no error is raised."""
    try:
        path.unlink()
    except OSError:
        return
