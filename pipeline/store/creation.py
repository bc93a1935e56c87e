"""A store is created once, by `store create`; nothing else makes one where it is missing.

Where the file system of a store is not mounted, its mount point is an empty folder or a missing one. What was
published into it would fill the root disk, and would be hidden as soon as the real store is mounted.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from pipeline.errors import PublishError
from pipeline.store import sealed
from pipeline.store.layout import RECORD_SUFFIX, Layout
from pipeline.store.reading import records_in
from pipeline.store.record import parse_own
from pipeline.system import atomic
from pipeline.system.mountinfo import unescaped

FSTAB = Path("/etc/fstab")
MOUNTS = Path("/proc/self/mounts")


def is_store(layout: Layout) -> bool:
    """Whether a store is at the root of `layout`: its folder of bytes, its manifest or an image.

    Raises OSError when that cannot be found out, for example for lack of permission or on a stale mount.
    """
    return (
        _is_there(layout.blobs)
        or _is_there(layout.manifest)
        or any(_has_records(layout, image) for image in layout.images())
    )


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _has_records(layout: Layout, image: str) -> bool:
    folder = layout.image(image)
    if _is_there(layout.events(image)):
        return True
    return any(_is_record(folder / (stem + RECORD_SUFFIX)) for stem in sorted(records_in(folder, set())))


def _is_record(path: Path) -> bool:
    try:
        return parse_own(sealed.read_bytes(path), path) is not None
    except (FileNotFoundError, NotADirectoryError, sealed.UnreadableError):
        return False  # some other JSON file, in a folder that a store has nothing to do with


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def require(layout: Layout) -> None:
    """Raise PublishError unless a store is at the root of `layout`."""
    with atomic.translate_errors(f"looking for the store {layout.root}"):
        if is_store(layout):
            return
        why = _what_is_there(layout.root)
    raise PublishError(
        f"there is no store at {layout.root} ({why}): is its file system mounted?",
        hint=f"a new store is created once: {create_command(layout.root)}",
    )


def create(layout: Layout, *, group: str | None, stripe: tuple[int, int] | None) -> bool:
    """Create the store at the root of `layout`; False when it exists already. Raises as `Store.create`."""
    from pipeline.store import folders, leases, space

    with atomic.translate_errors(f"creating the store {layout.root}"):
        if is_store(layout):
            return False
        if point := not_mounted(layout.root):
            raise PublishError(
                f"no store is created at {layout.root}: {point} is in /etc/fstab and is not mounted",
                hint=f"mount {point}",
            )
        folders.create_root(layout.root, group=group)
        space.check_group(layout, group)
        folders.make(layout.blobs)
        if stripe is not None:
            space.stripe(layout, count=stripe[0], size=stripe[1])
        leases.prepare(layout)
    return True


def create_command(root: Path) -> str:
    """The command that creates a store at `root`, for a shell."""
    return f"sqshpipe store create {shlex.quote(str(root))}"


def _what_is_there(root: Path) -> str:
    if root.is_dir():
        return "the folder holds other things" if _names(root) else "the folder is empty"
    if root.is_symlink():
        return f"a symlink to {root.readlink()}, which does not exist"
    return "it is not a folder" if root.exists() else "it does not exist"


def not_mounted(root: Path) -> str:
    """The mount point of /etc/fstab that `root` lies in and that is not mounted; empty when it is missing."""
    wanted = _mount_points(FSTAB)
    mounted = _mount_points(MOUNTS)
    real = Path(os.path.realpath(root))
    for folder in (real, *real.parents):
        if str(folder) in mounted or folder == folder.parent:
            return ""
        if str(folder) in wanted:
            return str(folder)
    return ""


def _mount_points(table: Path) -> set[str]:
    """The second column of a table of mounts (fstab(5))."""
    try:
        lines = table.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return set()
    words = [line.split() for line in lines if not line.lstrip().startswith("#")]
    return {unescaped(each[1]) for each in words if len(each) > 1}
