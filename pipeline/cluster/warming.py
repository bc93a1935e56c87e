"""What a prewarm does on one node: read the file into the page cache, or copy it to the node's own disk.

A copy is hashed while it is written, gets its name only when it is whole, and leaves the mark that lets the
importer prefer it without hashing it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ToolError, VerificationError
from pipeline.store.writer import temporary_name

_BLOCK = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmed:
    """What happened on a node; `size` in bytes. `there`: nothing had to be copied."""

    host: str
    path: Path
    size: int
    seconds: float
    there: bool

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
        with file.open("rb", buffering=0) as source:
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
        host=os.uname().nodename, path=file, size=size, seconds=time.monotonic() - began, there=False
    )


def onto_disk(
    file: Path,
    sha256: str,
    folder: Path,
    *,
    state: Path | None,
    brought: Path | None = None,
    reserve: int = 1 << 30,
) -> Warmed:
    """Copy a file to FOLDER/<sha256>.sqsh, unless it is there; `brought` is a copy that sbcast made already.

    `reserve` bytes stay free; for them older copies of ours go, the least recently warmed first. Raises
    ToolError when there is no space or no permission, VerificationError when the bytes are not those.
    """
    began = time.monotonic()
    target = folder / f"{sha256}.sqsh"
    try:
        size = file.stat().st_size
        folder.mkdir(parents=True, exist_ok=True)
        there = target.is_file() and target.stat().st_size == size and target.stat().st_uid == os.geteuid()
        if brought is not None:
            _adopt(brought, sha256, target)
        elif not there:
            _make_room(folder, size + reserve, target)
            _copy(file, sha256, target)
        os.utime(target, ns=(time.time_ns(), target.stat().st_mtime_ns))
        if state is not None:
            _mark(target, sha256, state)
    except OSError as error:
        raise ToolError(
            f"cannot prewarm {file} into {folder}: {error.strerror}",
            hint="name a folder on the node's own disk that this user may write",
        ) from error
    return Warmed(
        host=os.uname().nodename, path=target, size=size, seconds=time.monotonic() - began, there=there
    )


def _copy(file: Path, sha256: str, target: Path) -> None:
    temporary = target.with_name(temporary_name(".sqsh"))
    digest = hashlib.sha256()
    try:
        with file.open("rb", buffering=0) as source, temporary.open("xb", buffering=0) as copy:
            while block := source.read(_BLOCK):
                digest.update(block)
                view = memoryview(block)
                while view:
                    view = view[copy.write(view) :]
            os.fchmod(copy.fileno(), 0o444)
            os.fsync(copy.fileno())
        if digest.hexdigest() != sha256:
            raise VerificationError(f"{file} has sha256 {digest.hexdigest()}, not {sha256}")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _adopt(brought: Path, sha256: str, target: Path) -> None:
    """Give a file that somebody else brought its name, when its bytes are right; else remove it."""
    try:
        into_page_cache(brought, sha256)
        brought.chmod(0o444)
        brought.replace(target)
    finally:
        brought.unlink(missing_ok=True)


def _mark(target: Path, sha256: str, state: Path) -> None:
    """The importer's own mark of a file whose bytes were compared (see pyxis_importer.verify)."""
    found = target.stat()
    name = f"{sha256}-{found.st_dev:x}-{found.st_ino:x}-{found.st_mtime_ns:x}"
    with contextlib.suppress(FileNotFoundError, FileExistsError):  # no importer is installed here
        (state / "verified" / name).touch(mode=0o644)


def _make_room(folder: Path, needed: int, target: Path) -> None:
    """Remove copies of ours, the least recently warmed first, until `needed` bytes are free."""
    copies = sorted(
        (each for each in folder.glob("*.sqsh") if each != target and each.stat().st_uid == os.geteuid()),
        key=lambda each: each.stat().st_atime_ns,
    )
    while shutil.disk_usage(folder).free < needed:
        if not copies:
            free = shutil.disk_usage(folder).free
            raise ToolError(
                f"{folder} has {free >> 20} MiB free, {needed >> 20} MiB are needed",
                hint="prewarm into the page cache instead (without --local), or free space",
            )
        copies.pop(0).unlink(missing_ok=True)  # a mount of it goes on: the inode stays until the last user
