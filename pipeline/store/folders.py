"""Folders of a store that a team shares: every member can work in every folder, whoever made it and with
whatever umask.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from pipeline.errors import ConfigError, PublishError
from pipeline.store.layout import Layout
from pipeline.system import atomic

ALONE_MODE = 0o755
SHARED_MODE = 0o2775
"""Group-writable, and what is made inside has the same group (setgid)."""


def make(path: Path) -> None:
    """Make `path` and its missing parents, with the permissions of the folder above them.

    When that folder has a default ACL, only the ACL decides.
    """
    if path.is_dir():
        return
    parent = path.parent
    if not parent.exists():
        make(parent)
    try:
        path.mkdir()
    except FileExistsError:
        return
    if _has_default_acl(parent):  # the folder has inherited it, and a chmod would narrow it
        atomic.sync_folder(parent)
        return
    mode = stat.S_IMODE(parent.stat().st_mode)
    shared = mode & stat.S_ISGID
    wanted = mode & 0o777 | stat.S_ISGID if shared and mode & stat.S_IWGRP else ALONE_MODE & (mode | 0o700)
    if stat.S_IMODE(path.stat().st_mode) != wanted:
        path.chmod(wanted)
    atomic.sync_folder(parent)


def make_of_image(layout: Layout, image: str) -> None:
    """Make the folders of an image. Raises PublishError where a symlink of another user stands for one: in a
    store that a team shares, a member could lead others' writes, and root's, elsewhere.
    """
    for folder in (layout.blobs.parent, layout.blobs, layout.image(image), layout.head(image).parent):
        _refuse_link(folder)
    _refuse_link(layout.events(image))
    make(layout.events(image))


def _refuse_link(path: Path) -> None:
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISLNK(status.st_mode) and status.st_uid not in (0, os.geteuid()):
        raise PublishError(
            f"{path} is a symlink of user {status.st_uid}, so nothing is written there",
            hint="look where it leads, and remove it, or make it again as the store's owner",
        )


def _has_default_acl(folder: Path) -> bool:
    try:
        return bool(os.getxattr(folder, "system.posix_acl_default"))
    except OSError:
        return False  # none, or a file system without


def create_root(root: Path, *, group: str | None = None) -> None:
    """Make the root of a store. With `group` its members may all publish. Raises ConfigError for no such
    group.
    """
    with atomic.translate_errors(f"making the store {root}"):
        if root.is_dir():
            return
        root.parent.mkdir(parents=True, exist_ok=True)
        root.mkdir(exist_ok=True)
        root.chmod(ALONE_MODE if group is None else SHARED_MODE)
        if group is not None:
            try:
                shutil.chown(root, group=group)
            except LookupError:
                raise ConfigError(
                    f"there is no group {group!r} on this host", hint="check store: {group: …} in images.yaml"
                ) from None
            root.chmod(SHARED_MODE)  # chown takes the setgid bit away
        atomic.sync_folder(root.parent)
