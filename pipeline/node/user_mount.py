"""A kernel mount shown to one user as files of their own, as squashfuse shows it to who starts it.

USERS/<uid>.<gid>/root      the mount; only this user and root pass through the folder above it
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ToolError
from pipeline.system import mount, mount_api

_ACL = "system.posix_acl_access"
_OWNER, _USER, _GROUP, _MASK, _OTHER = 1, 2, 4, 0x10, 0x20
_NOBODY = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Whose job it is: the numbers of its user and group on this node."""

    uid: int
    gid: int

    @property
    def name(self) -> str:
        return f"{self.uid}.{self.gid}"


def place(users: Path, user: User) -> Path:
    """Where the mount of this user is, once `show` has made it."""
    return users / user.name / "root"


def show(mounted: Path, users: Path, user: User) -> Path:
    """Mount `mounted` at the place of this user, who owns there what root owns in the file; give the place.

    Raises ToolError when the kernel or the file system of `users` cannot do it.
    """
    root = place(users, user)
    if root.is_mount():
        return root
    try:
        root.mkdir(parents=True, exist_ok=True)
        users.chmod(0o711)
        os.setxattr(root.parent, _ACL, _only_for(user.uid))
        root.chmod(0o755)
        mount_api.clone_for(mounted, root, uid=user.uid, gid=user.gid)
    except OSError as error:
        _remove(root)
        raise ToolError(f"cannot reserve {root.parent} for one user: {error.strerror}") from error
    except ToolError:
        _remove(root)
        raise
    return root


def drop(users: Path, *, keep: Collection[str] = ()) -> None:
    """Unmount and remove all folders of `users` but those named in `keep` (``<uid>.<gid>``).

    Files that a process has open stay readable.
    """
    with contextlib.suppress(FileNotFoundError):
        for each in list(users.iterdir()):
            if each.name not in keep:
                if (each / "root").is_mount():
                    mount.unmount(each / "root", "kernel")
                _remove(each / "root")


def _only_for(uid: int) -> bytes:
    """An ACL, as acl(5) and the kernel have it: root does all, this user passes through, nobody else does."""
    entries = (
        (_OWNER, 7, _NOBODY),
        (_USER, 1, uid),
        (_GROUP, 0, _NOBODY),
        (_MASK, 1, _NOBODY),
        (_OTHER, 0, _NOBODY),
    )
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *each) for each in entries)


def _remove(root: Path) -> None:
    for each in (root, root.parent):
        with contextlib.suppress(FileNotFoundError):
            each.rmdir()
