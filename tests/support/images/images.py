"""Images for the tests of converters, and a look at the trees that came out, through any mount."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.oci.entry import EntryKind
from pipeline.oci.layout import open_layout
from pipeline.oci.platform import Platform
from pipeline.oci.source import ImageSource
from pipeline.oci.tree import Tree
from tests.support.images.layer_cases import Expected, LayerCase
from tests.support.images.layers import LayerBuilder, write_layout

LINUX = Platform.parse("linux/amd64")
FOUR_FILES = (b"etc/rc", b"etc/rc.local", b"etc/environment", b"etc/fstab")
_TYPES = {
    stat.S_IFREG: EntryKind.FILE,
    stat.S_IFDIR: EntryKind.DIRECTORY,
    stat.S_IFLNK: EntryKind.SYMLINK,
    stat.S_IFCHR: EntryKind.CHAR,
    stat.S_IFBLK: EntryKind.BLOCK,
    stat.S_IFIFO: EntryKind.FIFO,
}


def image(
    folder: Path,
    layers: Sequence[LayerBuilder],
    *,
    config: Mapping[str, Any] | None = None,
    compression: str | Sequence[str] = "gzip",
) -> ImageSource:
    """An image of `layers` in a new OCI layout in `folder`."""
    write_layout(folder, layers, config=config, compression=compression)
    return open_layout(folder, platform=LINUX)


def of_case(case: LayerCase, folder: Path) -> tuple[LayerCase, ImageSource]:
    """The case with /bin/sh on top of it, where no case hides it, and its image."""
    based = case.with_base()
    base, *layers = based.layers
    case = dataclasses.replace(based, layers=(*layers, base), compression=(*case.compressions, "gzip"))
    return case, image(folder, case.layers, compression=case.compressions)


def opened_mode(expected: Expected) -> int:
    """The mode in the .sqsh: readable for its owner, folders writable as well."""
    if expected.kind is EntryKind.DIRECTORY:
        return expected.mode | 0o700
    if expected.kind is EntryKind.SYMLINK:
        return expected.mode
    return expected.mode | (0o500 if expected.mode & 0o111 else 0o400)


def assert_case(root: Path, case: LayerCase, *, links: bool = True) -> None:
    """Whether the mounted or unpacked tree at `root` is what `case` expects, seen through the kernel.

    `links` False leaves out which names are one file: squashfuse makes up inode numbers.
    """
    found = listing(root)
    expected_paths = set(case.tree) | {b"etc", *FOUR_FILES}
    assert set(found) == expected_paths
    groups: dict[str, set[int]] = {}
    for path, expected in case.tree.items():
        status = found[path]
        assert _TYPES[stat.S_IFMT(status.st_mode)] is expected.kind, path
        assert stat.S_IMODE(status.st_mode) == opened_mode(expected), path
        if expected.kind is EntryKind.FILE:
            assert content(root, path) == expected.content, path
        elif expected.kind is EntryKind.SYMLINK:
            assert os.readlink(_below(root, path)) == expected.content, path  # noqa: PTH115 - bytes
        elif expected.kind in (EntryKind.CHAR, EntryKind.BLOCK):
            assert (os.major(status.st_rdev), os.minor(status.st_rdev)) == expected.device, path
        group = expected.group if expected.group is not None else f"alone {path!r}"
        if expected.kind is not EntryKind.DIRECTORY:
            groups.setdefault(group, set()).add(status.st_ino)
    if not links:
        return
    assert all(len(inodes) == 1 for inodes in groups.values()), "names of one file"
    assert len(set.union(set(), *groups.values())) == len(groups), "names of different files"


def assert_times_and_owners(root: Path, tree: Tree) -> None:
    """Whether times and owners at `root` are those of `tree`."""
    found = listing(root)
    for path, node in tree.items():
        status = found[path] if path else root.lstat()
        assert int(status.st_mtime) == node.entry.mtime, path
        assert (status.st_uid, status.st_gid) == (node.entry.uid, node.entry.gid), path


def listing(root: Path) -> dict[bytes, os.stat_result]:
    """Everything below `root` with its lstat."""
    top = os.fsencode(root)
    return {
        (folder + b"/" + name)[len(top) + 1 :]: os.lstat(folder + b"/" + name)
        for folder, folders, files in os.walk(top)
        for name in folders + files
    }


def content(root: Path, path: bytes) -> bytes:
    with open(_below(root, path), "rb") as stream:  # noqa: PTH123 - a path of any bytes
        return stream.read()


def _below(root: Path, path: bytes) -> bytes:
    return os.fsencode(root) + b"/" + path
