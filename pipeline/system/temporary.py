"""Names of temporary files that say which process writes them, so that nobody removes the files of a running
one.

    .tmp.<boot id>.<pid namespace>.<pid>.<start time>.<random>[.<rest>]

A process is known to be dead only where its pid can be looked up: on the same boot of the same machine and in
the same pid namespace. Anything else counts by age.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from pathlib import Path

from pipeline.system.alive import has_ended, start_time

PREFIX = ".tmp."
FOREIGN_WRITER_AGE_SECONDS = 7 * 24 * 3600
"""A file whose writer cannot be looked up from here is an orphan when nothing was written for this long."""

_NAME = re.compile(r"\.tmp\.([0-9a-f]{12})\.([0-9]+)\.([0-9]+)\.([0-9]+)\.[0-9a-f]{12}(?:\..*)?")


def temporary_name(rest: str = "") -> str:
    """A name that nobody else uses, in the form above; `rest` (such as ".sqsh") ends it."""
    pid = os.getpid()
    return f"{PREFIX}{_boot()}.{_namespace()}.{pid}.{start_time(pid) or 0}.{secrets.token_hex(6)}{rest}"


def is_temporary(name: str) -> bool:
    return name.startswith(PREFIX)


def is_foreign(path: Path) -> bool:
    """Whether the writer of a temporary file cannot be looked up from here: another machine, boot or
    container.
    """
    match = _NAME.fullmatch(path.name)
    return match is None or (match[1], match[2]) != (_boot(), _namespace())


def is_orphan(path: Path, *, now: float | None = None) -> bool:
    """Whether `path`, a temporary file or folder, was left behind by a writer that is dead."""
    match = _NAME.fullmatch(path.name)
    if match and not is_foreign(path):
        return has_ended(int(match[3]), match[4])
    try:
        changed = path.lstat().st_mtime
    except FileNotFoundError:
        return False
    return (time.time() if now is None else now) - changed > FOREIGN_WRITER_AGE_SECONDS


def _boot() -> str:
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
    except OSError:
        return "0" * 12
    return text.replace("-", "")[:12]


def _namespace() -> str:
    try:
        return "".join(digit for digit in str(Path("/proc/self/ns/pid").readlink()) if digit.isdigit())
    except OSError:
        return "0"
