"""What a prewarm does on one node: read the file into the page cache, or copy it to the node's own disk.

A copy gets its name only when it is whole. Then it is read back; the code that compares its sha256 (in the
importer) leaves the mark with which the importer need not read it again. The folder may be one where other
users can write: no name in it is followed or believed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ToolError, VerificationError
from pipeline.node import pyxis_importer, shared_copy
from pipeline.node.shared_copy import Copied
from pipeline.squashfs.ranges import PackRanges
from pipeline.system import untrusted
from pipeline.system.log import log
from pipeline.system.temporary import temporary_name
from pipeline.text import human_bytes

_BLOCK = 4 << 20
_HELD = frozenset({errno.EPERM, errno.EACCES, errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST})
"""What a rename answers when another user's file or folder has the name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmed:
    """What happened on a node; `size` in bytes. `there`: nothing had to be copied.

    `read` bytes came from the store, `reused` from copies of other releases on the node.
    """

    host: str
    path: Path
    size: int
    seconds: float
    there: bool
    read: int = 0
    reused: int = 0

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.size / self.seconds if self.seconds > 0 else 0.0


def into_page_cache(file: Path, sha256: str | None) -> Warmed:
    """Read a file through, once, in order; with `sha256` also check it.

    Raises VerificationError when the bytes are not those, ToolError when the file cannot be read.
    """
    began = time.monotonic()
    digest = hashlib.sha256() if sha256 else None
    size = 0
    try:
        with os.fdopen(untrusted.open_regular(file, follow=True), "rb", buffering=0) as source:
            os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while block := source.read(_BLOCK):
                size += len(block)
                if digest is not None:
                    digest.update(block)
    except OSError as error:
        raise ToolError(f"cannot read {file}: {error.strerror}") from error
    if digest is not None and digest.hexdigest() != sha256:
        raise VerificationError(f"{file} has sha256 {digest.hexdigest()}, not {sha256}")
    return Warmed(
        host=os.uname().nodename,
        path=file,
        size=size,
        seconds=time.monotonic() - began,
        there=False,
        read=size,
    )


def onto_disk(
    file: Path,
    sha256: str,
    folder: Path,
    *,
    state: Path | None,
    brought: Path | None = None,
    ranges: Path | None = None,
    reserve: int = 1 << 30,
) -> Warmed:
    """Copy a file to FOLDER/<sha256>.sqsh, unless it is there; `brought` is a copy that sbcast made already.

    `ranges` is where the file's ranges lie: what copies of other releases have in common with it is then
    taken from them (cloned, where the file system can), and the rest alone is read from the store. The copy
    is read back and compared, also one that was there, be it this user's or root's. `reserve` bytes stay
    free; for them older copies of ours go, the least recently warmed first. Where another user holds the
    copy's name, the file is read into the page cache instead. Raises ToolError when there is no space or no
    permission, VerificationError when the bytes are not those.
    """
    began = time.monotonic()
    name = f"{sha256}.sqsh"
    try:
        with untrusted.folder_to_write(folder, make=0o755) as place:
            size = file.stat().st_size
            wanted = shared_copy.read_ranges(ranges, size)
            there = brought is None and _verified(place, name, sha256, state, size, trusted=(0, os.geteuid()))
            copied = Copied(reused=0, read=0)
            if not there:
                made: Copied | None
                if brought is None:
                    _make_room(place, folder, size + reserve, name)
                    made = _copy(file, place, name, sha256, wanted)
                else:
                    made = copied if _adopt(brought, place, name) else None
                if made is None:
                    return into_page_cache(file, sha256)
                copied = made
                if not _verified(place, name, sha256, state, size, trusted=(os.geteuid(),)):
                    os.unlink(name, dir_fd=place)
                    raise VerificationError(
                        f"the copy of {file} in {folder} does not have sha256 {sha256}: it was removed",
                        hint="run sqshpipe store scrub to see whether the store has the right bytes",
                    )
            if wanted is not None:
                shared_copy.keep_ranges(place, name, wanted)
    except OSError as error:
        raise ToolError(
            f"cannot prewarm {file} into {folder}: {error.strerror}",
            hint="name a folder on the node's own disk that this user may write",
        ) from error
    return Warmed(
        host=os.uname().nodename,
        path=folder / name,
        size=size,
        seconds=time.monotonic() - began,
        there=there,
        read=copied.read,
        reused=copied.reused,
    )


def _verified(
    place: int, name: str, sha256: str, state: Path | None, size: int, *, trusted: tuple[int, ...]
) -> bool:
    """Whether there is a copy of a `trusted` user with the right bytes, which nobody else can write.

    It is read, and the importer's mark is left.
    """
    try:
        copy = untrusted.open_regular(name, dir_fd=place)
    except OSError:
        return False  # nothing, or something that another user planted
    try:
        status = os.fstat(copy)
        if status.st_uid not in trusted or status.st_mode & 0o022 or status.st_size != size:
            return False
        if status.st_uid == os.geteuid():  # for _make_room; before the mark notes the time
            os.utime(copy, ns=(time.time_ns(), status.st_mtime_ns))
        return pyxis_importer.verify(copy, sha256, str(state or ""))
    finally:
        os.close(copy)


def _copy(file: Path, place: int, name: str, sha256: str, ranges: PackRanges | None) -> Copied | None:
    """Copy a file into an open folder; None when another user holds the name.

    What was put together with bytes of other copies gets the name only with the right sha256; else all is
    read from the file.
    """
    temporary = temporary_name(".sqsh")
    try:
        copy = untrusted.create_exclusive(temporary, dir_fd=place)
        try:
            with os.fdopen(untrusted.open_regular(file, follow=True), "rb", buffering=0) as source:
                os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
                size = os.fstat(source.fileno()).st_size
                copied = shared_copy.fill(source.fileno(), copy, place, size, ranges)
                if copied.reused and not _has_digest(place, temporary, sha256):
                    log.warning(
                        "copies of other releases have other bytes, all is read from the store", copy=name
                    )
                    os.ftruncate(copy, 0)
                    copied = shared_copy.fill(source.fileno(), copy, place, size, None)
            os.fchmod(copy, 0o444)
            os.fsync(copy)
        finally:
            os.close(copy)
        return copied if _placed(place, temporary, place, name) else None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=place)


def _has_digest(place: int, name: str, sha256: str) -> bool:
    copy = untrusted.open_regular(name, dir_fd=place)
    try:
        return pyxis_importer.verify(copy, sha256, "")
    finally:
        os.close(copy)


def _adopt(brought: Path, place: int, name: str) -> bool:
    """Give a copy that sbcast made its name; False when another user holds the name."""
    with untrusted.folder_to_write(brought.parent) as parent:
        try:
            copy = untrusted.open_regular(brought.name, dir_fd=parent)
            try:
                os.fchmod(copy, 0o444)
            finally:
                os.close(copy)
            return _placed(parent, brought.name, place, name)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(brought.name, dir_fd=parent)


def _placed(parent: int, temporary: str, place: int, name: str) -> bool:
    """Rename a finished copy; False when another user holds the name and it cannot be taken from them."""
    try:
        os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=place)
    except OSError as error:
        if error.errno not in _HELD:
            raise
        try:  # root moves a planted folder away
            os.rename(name, f".planted.{secrets.token_hex(8)}", src_dir_fd=place, dst_dir_fd=place)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=place)
        except OSError:
            status = os.stat(name, dir_fd=place, follow_symlinks=False)
            log.warning("another user holds the name of the copy", name=name, uid=status.st_uid)
            return False
    return True


def _make_room(place: int, folder: Path, needed: int, keep: str) -> None:
    """Remove copies of ours, the least recently warmed first, until `needed` bytes are free."""
    copies = sorted(
        (status.st_atime_ns, name)
        for name in os.listdir(place)
        if name.endswith(".sqsh") and name != keep and not name.startswith(".")
        if (status := os.stat(name, dir_fd=place, follow_symlinks=False)).st_uid == os.geteuid()
        and stat.S_ISREG(status.st_mode)
    )
    while (free := os.statvfs(place).f_bavail * os.statvfs(place).f_frsize) < needed:
        if not copies:
            raise ToolError(
                f"{folder} has {human_bytes(free)} free, {human_bytes(needed)} are needed",
                hint="prewarm into the page cache instead (without --local), or free space",
            )
        with contextlib.suppress(FileNotFoundError):  # a mount of it stays whole until its last user
            gone = copies.pop(0)[1]
            shared_copy.forget_ranges(place, gone)
            os.unlink(gone, dir_fd=place)
