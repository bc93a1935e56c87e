"""Make a mount read-only together with every mount below it.

See mount_setattr(2), proc(5) on /proc/pid/mountinfo, mount(2) on MS_REMOUNT | MS_BIND.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import ToolError
from pipeline.system import mount_api
from pipeline.system.mountinfo import unescaped

_REMOUNT_READ_ONLY = 32 | 4096 | 1  # MS_REMOUNT | MS_BIND | MS_RDONLY
_KEPT = (
    2 | 4 | 8 | 1024 | 2048
)  # nosuid, nodev, noexec, noatime, nodiratime: the same bits for statvfs and mount
_ST_RELATIME, _MS_RELATIME = 4096, 1 << 21
_ABSENT = (
    errno.ENOSYS,
    errno.EPERM,
    errno.EINVAL,
)  # an older kernel, or a seccomp filter that hides the call
_FOLDER = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

Remount = Callable[[int, int], None]


def make_read_only(mounted: int, remount: Remount) -> None:
    """Make the mount that `mounted` is the root of read-only, and all mounts below it.

    `mounted` is an O_PATH descriptor; `remount(descriptor, flags)` is mount(2) on an open mount. Raises
    ToolError.
    """
    number = mount_api.set_attributes(mounted, mount_api.READ_ONLY, flags=mount_api.RECURSIVE)
    if number == 0:
        return
    if number not in _ABSENT:
        raise ToolError(f"cannot make a mount read-only: {os.strerror(number)}")
    try:
        _one_by_one(mounted, remount)
    except (OSError, ValueError, IndexError) as error:
        raise ToolError(f"cannot make the mounts below a read-only mount read-only: {error}") from error


def _one_by_one(top: int, remount: Remount) -> None:
    """For older kernels. A mount that another one hides cannot be reached, also not from inside."""
    table = _table()
    known = _mount_of(top)
    beginning = table[known][1]
    _remount(top, remount)
    waiting = [known]
    while waiting:
        parent = waiting.pop()
        for number, (above, place) in table.items():
            if above != parent or number == parent:
                continue
            waiting.append(number)
            found = _below(top, os.path.relpath(place, beginning))
            try:
                if _mount_of(found) == number:
                    _remount(found, remount)
            finally:
                os.close(found)


def _remount(mounted: int, remount: Remount) -> None:
    # What the host's mount forbids stays forbidden: a user namespace may not take such flags away.
    flags = os.fstatvfs(mounted).f_flag
    kept = flags & _KEPT | (_MS_RELATIME if flags & _ST_RELATIME else 0)
    remount(mounted, _REMOUNT_READ_ONLY | kept)


def _below(folder: int, path: str) -> int:
    """An O_PATH descriptor of what lies there; mounts are crossed, symlinks are not followed."""
    found = os.dup(folder)
    for name in path.split("/"):
        try:
            below = os.open(name, _FOLDER, dir_fd=found)
        finally:
            os.close(found)
        found = below
    return found


def _mount_of(descriptor: int) -> int:
    """The number of the mount that an open file is on."""
    for line in Path(f"/proc/self/fdinfo/{descriptor}").read_bytes().splitlines():
        if line.startswith(b"mnt_id:"):
            return int(line.split()[1])
    raise OSError(errno.ENOSYS, "/proc/self/fdinfo names no mount")


def _table() -> dict[int, tuple[int, str]]:
    """The number of each mount, that of the mount below which it is, and its path."""
    found = {}
    for line in os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).split("\n")[:-1]:
        words = line.split(" ")
        found[int(words[0])] = int(words[1]), unescaped(words[4])
    return found
