"""What a tree on disk looks like, entry by entry, so that two mounts or unpacked folders can be compared."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.oci.entry import EntryKind
from pipeline.oci.tree import Tree

_KINDS = {
    stat.S_IFREG: EntryKind.FILE,
    stat.S_IFDIR: EntryKind.DIRECTORY,
    stat.S_IFLNK: EntryKind.SYMLINK,
    stat.S_IFCHR: EntryKind.CHAR,
    stat.S_IFBLK: EntryKind.BLOCK,
    stat.S_IFIFO: EntryKind.FIFO,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One path: `first` is the first name of its inode, `content` a file's sha256 or a symlink's target."""

    kind: EntryKind
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int = 0
    nlink: int = 1
    first: bytes = b""
    content: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


def snapshot(root: Path, *, xattrs: bool = True) -> dict[bytes, Seen]:
    """Every path below `root`, b"" being itself."""
    top = os.fsencode(root)
    paths = [b""]
    for base, folders, files in os.walk(top):
        paths += [(base + b"/" + name)[len(top) + 1 :] for name in folders + files]
    names: dict[int, bytes] = {}
    return {path: _seen(top, path, names, xattrs) for path in sorted(paths)}


def _seen(top: bytes, path: bytes, names: dict[int, bytes], xattrs: bool) -> Seen:
    full = top + b"/" + path
    status = os.lstat(full)
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    content = b""
    if kind is EntryKind.FILE:
        with open(full, "rb") as file:  # noqa: PTH123 - a path of bytes
            content = _sha256(file) if status.st_size else b""
    elif kind is EntryKind.SYMLINK:
        content = os.readlink(full)  # noqa: PTH115 - a path of bytes
    is_device = kind in (EntryKind.CHAR, EntryKind.BLOCK)
    return Seen(
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime=int(status.st_mtime),
        size=status.st_size if kind is EntryKind.FILE else 0,
        nlink=status.st_nlink if kind is EntryKind.FILE else 1,
        first=names.setdefault(status.st_ino, path) if kind is not EntryKind.DIRECTORY else path,
        content=content,
        device=(os.major(status.st_rdev), os.minor(status.st_rdev)) if is_device else (0, 0),
        xattrs=_xattrs(full) if xattrs else (),
    )


def _sha256(file: BinaryIO) -> bytes:
    digest = hashlib.sha256()
    while piece := file.read(1 << 20):
        digest.update(piece)
    return digest.digest()


def _xattrs(path: bytes) -> tuple[tuple[bytes, bytes], ...]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:  # what a squashfs file without an xattr table says
            raise
        names = []
    return tuple(
        sorted((os.fsencode(name), os.getxattr(path, name, follow_symlinks=False)) for name in names)
    )


def expected(tree: Tree, contents: dict[bytes, bytes]) -> dict[bytes, Seen]:
    """What a mount of `tree` must show; `contents` are the plain bytes of each file by its first name."""
    links: dict[bytes, list[bytes]] = {}
    for path, node in tree.items():
        links.setdefault(node.link_to or path, []).append(path)
    found = {}
    for path, node in tree.items():
        entry = node.entry
        names = links[node.link_to or path]
        content = entry.target
        if entry.kind is EntryKind.FILE:
            content = hashlib.sha256(contents[node.link_to or path]).digest() if entry.size else b""
        found[path] = Seen(
            kind=EntryKind(entry.kind),
            mode=entry.mode,
            uid=entry.uid,
            gid=entry.gid,
            mtime=entry.mtime,
            size=entry.size,
            nlink=len(names) if entry.kind is EntryKind.FILE else 1,
            first=min(names) if entry.kind is not EntryKind.DIRECTORY else path,
            content=content,
            device=(entry.major, entry.minor),
            xattrs=entry.xattrs,
        )
    return found


def from_tar(path: Path) -> dict[bytes, tuple[int, int, int, int]]:
    """The (mode, mtime, size, type) of each member of a tar, hard links with size 0."""
    with tarfile.open(path, errors="surrogateescape") as tar:
        return {
            os.fsencode(member.name).strip(b"/"): (
                member.mode,
                int(member.mtime),
                member.size if member.isreg() else 0,
                member.type[0],
            )
            for member in tar
        }
