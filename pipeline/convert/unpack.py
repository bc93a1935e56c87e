"""Puts a merged tree into a folder, safely: only what the tree holds, and never through a link.

Every name is made relative to an open folder, with O_NOFOLLOW and O_EXCL, so that no entry of a layer can
lead outside, whatever links came before it. Device nodes are left out: only root could make them, and
mksquashfs takes them as definitions.
"""

from __future__ import annotations

import errno
import functools
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.convert.names import shown
from pipeline.errors import FormatError, ToolError
from pipeline.oci.entry import Entry, EntryKind
from pipeline.oci.tree import Node, Tree
from pipeline.progress import Task
from pipeline.system.disk import is_full
from pipeline.system.parallel import CancelToken, run_all

LAST_TIME = 0xFFFF_FFFF  # squashfs keeps unsigned 32-bit seconds
_SYSTEM_32_BIT = 0x7FFF_FFFF  # beyond it some file systems clamp
_HOLE = 1 << 16  # zeros in pieces of this size are not written
_ZEROS = bytes(_HOLE)
_OPEN_FOLDERS = 64
_ROOMY = "another file system, such as XFS"
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEVICES = (EntryKind.CHAR, EntryKind.BLOCK)


class Content(Protocol):
    """What is read of one file of a layer."""

    def pieces(self) -> Iterator[memoryview]: ...


# (layer, halt) -> its entries in order, each with its content
OpenLayer = Callable[[int, CancelToken], AbstractContextManager[Iterator[tuple[Entry, Content]]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preserve:
    """What of the image is set on the files in scratch; owners need root."""

    owners: bool = False
    xattrs: bool = False


def unpack(
    tree: Tree, open_layer: OpenLayer, root: Path, *, keep: Preserve, task: Task, workers: int
) -> None:
    """Make all of ``tree`` below the empty folder ``root`` but for device nodes, layers in parallel.

    ``open_layer(n, halt)`` gives the entries of layer ``n`` in their order with their content. Raises
    FormatError when content differs from what the tree says, ToolError when scratch cannot hold it (full,
    times, names).
    """
    with _Unpacker(root, tree, keep) as unpacker:
        unpacker.make_folders_and_links()
        wanted = _wanted(tree)

        def fill(layer: int, cancel: CancelToken) -> None:
            unpacker.fill(open_layer(layer, cancel), wanted[layer], task, cancel)

        run_all([functools.partial(fill, layer) for layer in wanted], workers=workers)
        unpacker.finish()


def _wanted(tree: Tree) -> dict[int, dict[int, bytes]]:
    """For each layer the positions of the entries whose content is in the tree, with the path of each."""
    wanted: dict[int, dict[int, bytes]] = {}
    for path, node in tree.items():
        if node.entry.kind is EntryKind.FILE and node.link_to is None and node.content is None:
            wanted.setdefault(node.layer, {})[node.index] = path
    return wanted


class _Folders:
    """Open folders below a root by path; each step down refuses links. For one thread."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._open: OrderedDict[bytes, int] = OrderedDict()

    def get(self, path: bytes) -> int:
        """A descriptor of the folder at ``path``, good until the next call."""
        if not path:
            return self._root
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        parent, _, name = path.rpartition(b"/")
        descriptor = self._step(parent, name)
        self._open[path] = descriptor
        if len(self._open) > _OPEN_FOLDERS:
            os.close(self._open.popitem(last=False)[1])
        return descriptor

    def _step(self, parent: bytes, name: bytes) -> int:
        # From the nearest folder that is open, without recursion: paths may be thousands of folders deep.
        known = parent
        while known and known not in self._open:
            known = known.rpartition(b"/")[0]
        descriptor, owned = (self._open[known] if known else self._root), False
        rest = parent[len(known) :].strip(b"/")
        for part in [*(rest.split(b"/") if rest else []), name]:
            below = os.open(part, _FOLDER, dir_fd=descriptor)
            if owned:
                os.close(descriptor)
            descriptor, owned = below, True
        return descriptor

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


class _Unpacker:
    def __init__(self, root: Path, tree: Tree, keep: Preserve) -> None:
        self._path = root
        self._tree = tree
        self._keep = keep
        self._root = os.open(root, _FOLDER)
        self._folders = _Folders(self._root)

    def __enter__(self) -> _Unpacker:  # noqa: PYI034 - Self is not in Python 3.10
        return self

    def __exit__(self, *_unused: object) -> None:
        self._folders.close()
        os.close(self._root)

    def make_folders_and_links(self) -> None:
        """All that needs no layer: folders, symlinks, fifos, and the files that no layer brought."""
        for path, node in self._tree.items():
            if not path or node.link_to is not None or node.entry.kind in _DEVICES:
                continue
            with _translate_errors(self._path, path):
                folder, name = self._place(self._folders, path)
                self._make(folder, name, path, node)

    def _make(self, folder: int, name: bytes, path: bytes, node: Node) -> None:
        entry = node.entry
        if entry.kind is EntryKind.DIRECTORY:
            os.mkdir(name, 0o700, dir_fd=folder)
        elif entry.kind is EntryKind.SYMLINK:
            os.symlink(entry.target, name, dir_fd=folder)
            self._dress_name(folder, name, path, entry)
        elif entry.kind is EntryKind.FIFO:
            os.mkfifo(name, 0o600, dir_fd=folder)
            self._dress_name(folder, name, path, entry)
        elif node.content is not None:
            descriptor = os.open(name, _NEW_FILE, 0o600, dir_fd=folder)
            try:
                _write(descriptor, node.content)
                self._dress_open(descriptor, path, entry)
            finally:
                os.close(descriptor)

    def fill(
        self,
        layer: AbstractContextManager[Iterator[tuple[Entry, Content]]],
        files: Mapping[int, bytes],
        task: Task,
        cancel: CancelToken,
    ) -> None:
        """Write the files of one layer; runs in a thread of its own."""
        left = len(files)
        folders = _Folders(self._root)
        try:
            with layer as entries:
                for index, (entry, content) in enumerate(entries):
                    path = files.get(index)
                    if path is None:
                        continue
                    with _translate_errors(self._path, path):
                        self._fill_one(folders, path, entry, content, task, cancel)
                    left -= 1
                    if left == 0:
                        return  # what follows is hidden or no file; the tree was read from the whole layer
        finally:
            folders.close()
        raise FormatError(f"a layer has changed while it was read: {left} of its files are no longer there")

    def _fill_one(
        self, folders: _Folders, path: bytes, entry: Entry, content: Content, task: Task, cancel: CancelToken
    ) -> None:
        expected = self._tree[path].entry
        folder, name = self._place(folders, path)
        descriptor = os.open(name, _NEW_FILE, 0o600, dir_fd=folder)
        try:
            size = 0
            for piece in content.pieces():
                cancel.check()
                _write_sparse(descriptor, piece)
                size += len(piece)
                task.advance(len(piece))
            os.ftruncate(descriptor, size)
            if size != expected.size or entry.crc32 != expected.crc32:
                raise FormatError(f"the file {shown(path)} has changed while its layer was read")
            self._dress_open(descriptor, path, expected)
        finally:
            os.close(descriptor)

    def finish(self) -> None:
        """Hard links, then the folders' modes and times, the deepest first: making names changes times."""
        for path, node in self._tree.items():
            if node.link_to is not None and node.entry.kind not in _DEVICES:
                with _translate_errors(self._path, path):
                    self._link(path, node.link_to)
        for path in reversed(list(self._tree)):
            entry = self._tree[path].entry
            if entry.kind is EntryKind.DIRECTORY:
                with _translate_errors(self._path, path):
                    self._dress_open(self._folders.get(path), path, entry)

    def _link(self, path: bytes, target: bytes) -> None:
        # dup: the second look-up may close the first folder
        folder, name = self._place(self._folders, target)
        source = os.dup(folder)
        try:
            folder, new_name = self._place(self._folders, path)
            os.link(name, new_name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
        finally:
            os.close(source)

    def _place(self, folders: _Folders, path: bytes) -> tuple[int, bytes]:
        parent, _, name = path.rpartition(b"/")
        return folders.get(parent), name

    def _dress_open(self, descriptor: int, path: bytes, entry: Entry) -> None:
        """Owner, attributes, mode, time of an open file or folder, in an order in which none undoes one."""
        if self._keep.owners:
            os.fchown(descriptor, entry.uid, entry.gid)
        if self._keep.xattrs:
            _set_attributes(descriptor, path, entry)
        os.fchmod(descriptor, entry.mode)
        time = clamped(entry.mtime)
        os.utime(descriptor, ns=(time * 10**9, time * 10**9))
        _check_time(os.fstat(descriptor), path, time)

    def _dress_name(self, folder: int, name: bytes, path: bytes, entry: Entry) -> None:
        """The same for a symlink or a fifo, which is not opened."""
        if self._keep.owners:
            os.chown(name, entry.uid, entry.gid, dir_fd=folder, follow_symlinks=False)
        if self._keep.xattrs:
            _set_attributes(f"/proc/self/fd/{folder}/".encode() + name, path, entry)
        if entry.kind is not EntryKind.SYMLINK:
            os.chmod(name, entry.mode, dir_fd=folder)  # just made by us in a folder of ours: no link
        time = clamped(entry.mtime)
        os.utime(name, ns=(time * 10**9, time * 10**9), dir_fd=folder, follow_symlinks=False)
        _check_time(os.stat(name, dir_fd=folder, follow_symlinks=False), path, time)


def _set_attributes(where: int | bytes, path: bytes, entry: Entry) -> None:
    key, value = b"", b""
    try:
        for key, value in entry.xattrs:
            if isinstance(where, int):
                os.setxattr(where, key, value)
            else:
                os.setxattr(where, key, value, follow_symlinks=False)
    except OSError as error:  # ENOSPC may be the file's own room for attributes: one block on ext4
        name = key.decode("utf-8", "backslashreplace")
        raise ToolError(
            f"the file system of scratch does not take the extended attribute {name} of"
            f" {len(value)} bytes of {shown(path)}: {error.strerror}",
            hint=f"use --converter native, or set SQSHPIPE_SCRATCH to a folder on {_ROOMY}",
        ) from error


def clamped(mtime: int) -> int:
    """A time as squashfs can hold it."""
    return min(max(mtime, 0), LAST_TIME)


def _check_time(found: os.stat_result, path: bytes, time: int) -> None:
    if time > _SYSTEM_32_BIT and int(found.st_mtime) != time:
        raise ToolError(
            f"the file system of scratch cannot hold the time of {shown(path)}, {time} s after 1970",
            hint="set SQSHPIPE_SCRATCH to a folder on another one, or use --converter native",
        )


def _write(descriptor: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _write_sparse(descriptor: int, piece: memoryview) -> None:
    """Write ``piece``, leaving holes where it is all zeros; a hole at the end needs ftruncate."""
    start = 0
    for at in range(0, len(piece), _HOLE):
        size = min(_HOLE, len(piece) - at)
        if piece[at] == 0 and bytes(piece[at : at + size]) == _ZEROS[:size]:
            _write(descriptor, piece[start:at])
            os.lseek(descriptor, size, os.SEEK_CUR)
            start = at + size
    _write(descriptor, piece[start:])


class _translate_errors:  # noqa: N801 - reads as a part of the with statement
    """Turns an OSError inside into a ToolError that names scratch and the path; cheap, once a file."""

    __slots__ = ("_path", "_root")

    def __init__(self, root: Path, path: bytes) -> None:
        self._root = root
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OSError):
            return
        name, where = shown(self._path), self._root.parent
        if is_full(error):
            raise ToolError(
                f"no space left in {where} while unpacking {name}",
                hint="free some, or set SQSHPIPE_SCRATCH to a folder on a larger local disk",
            ) from error
        if error.errno == errno.EMLINK:
            raise ToolError(
                f"the file system of scratch gives one file fewer names than {name} needs (ext4: 65,000)",
                hint=f"use --converter native, or set SQSHPIPE_SCRATCH to a folder on {_ROOMY}",
            ) from error
        raise ToolError(
            f"cannot unpack {name} in {where}: {error.strerror}",
            hint="set SQSHPIPE_SCRATCH to a folder on a local disk, or use --converter native",
        ) from error
