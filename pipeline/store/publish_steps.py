"""The single steps of publishing a release, in the order that `publish` takes them.

1. the bytes, written and hashed under a temporary name in blobs/sha256/, flushed, 0444;
2. linked to the name that is their digest (never replacing), the folder flushed;
3. the record linked to <version>.json: from here on the release exists;
4. the bytes looked for once more, since a prune may have judged them unused a moment ago;
5. channel, caches.

A kill between two steps leaves bytes without a record, or a release whose caches the next run makes.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import ConfigError, PublishError, VerificationError
from pipeline.progress import NO_TASK, Task
from pipeline.store import folders, space
from pipeline.store.layout import Layout
from pipeline.store.reading import exists, read_record
from pipeline.store.record import Record
from pipeline.system import atomic, exclusive, untrusted
from pipeline.system.hashing import hashed
from pipeline.system.temporary import temporary_name
from pipeline.text import short

_PIECE = 4 << 20


class OtherContentError(PublishError):
    """A version was published before with other content, or the name is that of another kind of releases."""


@contextmanager
def staging(layout: Layout) -> Iterator[Path]:
    """A name in blobs/sha256/ that a converter may write its .sqsh to, and longer names that begin with it.

    Files of these names are removed at the end of the block. `prune` removes those of a killed process.
    """
    with atomic.translate_errors("preparing the store"):
        folders.make(layout.blobs)
    path = layout.blobs / temporary_name(".sqsh")
    try:
        yield path
    finally:
        with os.scandir(layout.blobs) as entries:
            leftovers = [entry.name for entry in entries if entry.name.startswith(path.name)]
        for name in leftovers:
            (layout.blobs / name).unlink(missing_ok=True)


def copy_in(file: Path, staged: Path, *, task: Task = NO_TASK) -> str:
    """Copy `file` to `staged`, which must be new, and give the sha256 of what was written."""
    with file.open("rb", buffering=0) as source:
        size = os.fstat(source.fileno()).st_size
        task.total(size)
        with staged.open("xb", buffering=0) as target:
            space.reserve(target.fileno(), size)

            def keep(piece: bytes) -> None:
                view = memoryview(piece)
                while view:
                    view = view[target.write(view) :]
                task.advance(len(piece))

            return hashed(source, keep).hexdigest()


def link_in(file: Path, staged: Path) -> None:
    """Give `file` the name `staged` too: its bytes are not copied, and a kill loses neither name.

    Raises ConfigError when it is a symlink, belongs to another user, has other names already, or lies in
    another file system.
    """
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_uid != os.geteuid():
        raise ConfigError(
            f"{file} cannot be moved: it is not a file of this user with one name",
            hint="leave out --move, then it is copied",
        )
    try:
        os.link(file, staged)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
            raise
        raise ConfigError(
            f"{file} cannot be moved: it lies in another file system or quota than the store",
            hint="leave out --move, then it is copied",
        ) from error


def hash_file(path: Path, *, task: Task = NO_TASK) -> str:
    """sha256 of a regular file in hex. Raises OSError for anything else, a symlink too."""
    with os.fdopen(untrusted.open_regular(path), "rb", buffering=0) as source:
        task.total(os.fstat(source.fileno()).st_size)
        return hashed(source, lambda piece: task.advance(len(piece))).hexdigest()


def seal(staged: Path, record: Record, sha256: str) -> None:
    """Check that the staged bytes are those of `record`, make them read-only and durable."""
    size = staged.stat().st_size
    if (size, sha256) != (record.size, record.sha256):
        raise VerificationError(
            f"{record.image}:{record.version}: {size} bytes with sha256 {sha256} arrived in the store, "
            f"{record.size} with {record.sha256} were sent",
            hint="the file changed meanwhile or the disk is failing; convert it again",
        )
    descriptor = os.open(staged, os.O_RDONLY)
    try:
        os.fchmod(descriptor, atomic.READ_ONLY)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_bytes(layout: Layout, staged: Path, record: Record) -> None:
    """Give sealed bytes the name of their digest. Bytes that are there already stay."""
    blob = layout.blob(record.sha256)
    if exclusive.link_noreplace(staged, blob):
        atomic.sync_folder(layout.blobs)
    else:
        check_present(layout, record)


def check_present(layout: Layout, record: Record, *, task: Task = NO_TASK) -> None:
    """Read bytes that are there already back. Raises VerificationError when they are not the record's."""
    blob = layout.blob(record.sha256)
    if (digest := hash_file(blob, task=task)) != record.sha256:
        raise VerificationError(
            f"{blob} is damaged: its sha256 is {digest}",
            hint="run sqshpipe store scrub, which marks what is damaged, then publish again to repair it",
        )


def commit(layout: Layout, record: Record) -> bool:
    """Write the record, which publishes the release. False when the same content was published before.

    Raises PublishError when other content was published under that version.
    """
    path = layout.record(record.image, record.version, record.platform)
    if atomic.create(path, record.as_bytes()):
        return True
    refuse_other_content(record, atomic.patiently(lambda: _taken(layout, record)))
    return False


def _taken(layout: Layout, record: Record) -> Record:
    there = read_record(layout, record.image, record.version, record.platform)
    if there is None:
        path = layout.record(record.image, record.version, record.platform)
        raise FileNotFoundError(errno.ENOENT, "not to be seen yet", str(path))
    return there


def refuse_other_content(record: Record, there: Record) -> None:
    """Raise OtherContentError when `there`, published under that version, is not what `record` brings."""
    if there.sha256 != record.sha256:
        raise OtherContentError(
            f"{record.image}:{record.version} for {record.platform} was published at {there.created} with "
            f"other content (sha256 {short(there.sha256)}…, not {short(record.sha256)}…)",
            hint="a published version never changes, also after it was pruned: choose another version",
        )


def bytes_are_there(layout: Layout, record: Record) -> bool:
    blob = layout.blob(record.sha256)
    return exists(blob) and blob.stat().st_size == record.size
