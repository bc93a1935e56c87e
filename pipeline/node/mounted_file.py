"""The file that is mounted in a folder of the node: which it is, has it changed, is it damaged.

NODE/<sha256>…/path         its path, and what it was when it was mounted
NODE/damaged/<sha256>       the same of a file whose bytes were found to be wrong, also when no mount is left
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path

from pipeline.node import pyxis_importer
from pipeline.system import untrusted

_KERNEL_LOG = Path("/dev/kmsg")
_RECORD = 8192  # bytes: the kernel gives one record a read, and no longer one
_SLACK = 60.0  # seconds by which the clock of the kernel's log and that of files may differ
_DAMAGED = "damaged"
_LONGEST = 1 << 13  # bytes of a path and an identity


def identity(file: Path | int) -> str:
    """What differs when a file, by its path or opened, was replaced or written to. Raises OSError."""
    found = os.fstat(file) if isinstance(file, int) else file.stat()
    return f"{found.st_dev:x}-{found.st_ino:x}-{found.st_size:x}-{found.st_mtime_ns:x}-{found.st_ctime_ns:x}"


def note(folder: Path, file: Path, what: str) -> None:
    """Note the path of the file that is mounted in a folder, and its `identity`."""
    (folder / "path").write_text(f"{file}\n{what}\n")


def noted(folder: Path) -> tuple[str, str]:
    """The path of the file that is mounted, and its `identity` at that time; empty when none is."""
    try:
        path, _, before = (folder / "path").read_text().rstrip("\n").partition("\n")
    except OSError:
        return "", ""
    return path, before


def path_of(folder: Path) -> str:
    """The path of the file that is mounted in a folder of the node; empty when none is."""
    return noted(folder)[0]


def has_changed(folder: Path) -> str:
    """Path of a file that is another one, or has other bytes, than when it was mounted; else empty."""
    found = noted(folder)
    return found[0] if differs(*found) else ""


def differs(path: str, before: str) -> bool:
    """Whether a file has another `identity` now. One that cannot be looked at now has not changed."""
    try:
        return bool(before) and identity(Path(path)) != before
    except OSError:
        return False


def digest_of(folder: Path) -> str:
    """The sha256 of a file that root has mounted for a job; empty for others, where it may be no digest."""
    return folder.name[:64] if (folder / "names").exists() else ""


def had_errors(folder: Path) -> bool:
    """Whether the kernel met wrong data in any squashfs since this one was mounted.

    Its log does not say in which one. False also for who may not read the log.
    """
    try:
        since = (folder / "path").stat().st_mtime - _SLACK
        log = os.open(_KERNEL_LOG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    booted = time.time() - time.monotonic()
    try:
        while record := _next_record(log):
            found = re.match(rb"\d+,\d+,(\d+),[^;]*;SQUASHFS error", record)
            if found and booted + int(found[1]) / 1e6 > since:
                return True
    finally:
        os.close(log)
    return False


def _next_record(log: int) -> bytes:
    while True:
        try:
            return os.read(log, _RECORD)
        except BrokenPipeError:  # noqa: PERF203 - a record was overwritten unread: the next one follows
            continue
        except OSError:  # no further record
            return b""


def examine(node: Path, sha256: str, path: str) -> bool:
    """Read a whole file; when its bytes are not those of its digest, remember that. Gives whether they are.

    A file that cannot be read now is not damaged, nor is one without a digest.
    """
    if not sha256:
        return True
    try:
        descriptor = pyxis_importer.open_file(path)
    except (OSError, pyxis_importer.Refused):
        return True
    try:
        what = identity(descriptor)
        right = pyxis_importer.verify(descriptor, sha256, "")
    except OSError:
        return True
    finally:
        os.close(descriptor)
    if not right:
        with contextlib.suppress(OSError), untrusted.folder_to_write(node / _DAMAGED, make=0o755):
            untrusted.replace_file(node / _DAMAGED / sha256, f"{path}\n{what}\n".encode(), mode=0o644)
    return right


def damaged(node: Path, sha256: str = "*") -> list[str]:
    """Paths of the files (or of the one with this digest) that were found damaged and are still the same."""
    found = []
    for mark in (node / _DAMAGED).glob(sha256):
        with contextlib.suppress(OSError):
            text = untrusted.read_regular(mark, limit=_LONGEST).decode(errors="surrogateescape")
            path, _, what = text.rstrip("\n").partition("\n")
            if identity(Path(path)) == what:
                found.append(path)
            else:
                mark.unlink()
    return found
