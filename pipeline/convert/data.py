"""Data: a folder or a tar as it is, in a .sqsh that is mounted and never run.

Nothing is unpacked: content goes from where it lies to its place in the file. The file depends on names,
content, times, links and which files are executable; owners, other permissions and attributes are not kept,
since root mounts it and everybody reads it. So the same folder gives the same bytes.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import zlib
from collections import deque
from collections.abc import Container, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

from pipeline.config.types import ConvertOptions
from pipeline.convert.convert import ConverterRecord, WrittenFile, recorded, seal
from pipeline.convert.names import shown
from pipeline.convert.packing import codec_of
from pipeline.convert.tree import NODE
from pipeline.errors import ConfigError, FormatError, ToolError
from pipeline.oci.entry import DEFAULT_LIMITS, Entry, EntryKind
from pipeline.oci.layer import Readable, decompressed, detect, read_layer
from pipeline.oci.merge import merge
from pipeline.oci.tree import Tree
from pipeline.progress import NO_TASK, Task
from pipeline.squashfs.compressors import Compressors
from pipeline.squashfs.direct import DirectWriter
from pipeline.squashfs.pack import FORMAT_VERSION
from pipeline.squashfs.packwriter import Read
from pipeline.squashfs.stitch import StitchOptions
from pipeline.system import untrusted
from pipeline.system.disk import cannot_write
from pipeline.system.memory import out_of_memory, require_memory

LIMITS = replace(DEFAULT_LIMITS, max_unpacked=1 << 50, max_entries=1 << 25, max_metadata=1 << 32)
_SMALL = 1 << 17  # bytes of a file that is read ahead, whole
_AHEAD = 32  # entries of a folder: a shared file system answers many questions as fast as one
_READERS = 16
_LATEST = (1 << 32) - 1  # the last second that squashfs can hold
_MAGIC = b"hsqs"
_STAY = "it must be readable, and stay as it is until it is imported"

Member = tuple[Entry, Read]


def is_data(path: Path) -> bool:
    """Whether `path` is a folder or a tar (plain, gzip, zstd); False for a .sqsh and for any other file.

    Raises ConfigError when it cannot be read, FormatError for a kind of compression that is not read here.
    """
    if path.is_dir():
        return True
    try:
        with os.fdopen(untrusted.open_regular(path, follow=True), "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    try:
        return not head.startswith(_MAGIC) and (detect(head[:6]) != "none" or head[257:262] == b"ustar")
    except FormatError as error:
        raise FormatError(f"{path} is neither a .sqsh nor a tar of gzip, zstd or plain") from error


def convert_data(
    source: Path, options: ConvertOptions, *, output: Path, images: bool = False, task: Task = NO_TASK
) -> WrittenFile:
    """Write the new file `output` from the folder or tar `source`; on an exception it is gone.

    `images`: also take a folder or a tar that is itself a container image. Raises ToolError (space, files
    that cannot be read or change meanwhile), FormatError (not a tar, or what squashfs or other nodes cannot
    hold).
    """
    codec = codec_of(options)
    try:
        target = os.open(output, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise cannot_write(error, output) from error
    made = StitchOptions(codec=codec, block_size=options.block_size)
    try:
        with Compressors(codec) as compressors:
            writer = DirectWriter(target, made, compressors)
            tree, hidden = _copied(source, writer, images=images, task=task)
            if hidden:  # its bytes are in the file, so all is written again without it
                os.ftruncate(target, 0)
                writer = DirectWriter(target, made, compressors)
                tree, hidden = _copied(source, writer, images=images, task=NO_TASK, without=hidden)
            if hidden:
                raise ToolError(f"{source} changed while it was read", hint="import it when it is complete")
            writer.finish(tree)
    except BaseException as error:
        output.unlink(missing_ok=True)
        if isinstance(error, FormatError):
            text = error.message.replace("a layer", "the tar")
            raise FormatError(f"{source}: {text}", hint=error.hint) from error
        if isinstance(error, OSError):
            raise out_of_memory(error) or cannot_write(error, output) from error
        raise out_of_memory(error) or error from error
    finally:
        os.close(target)
    sha256, size = seal(output)
    return WrittenFile(
        path=output,
        sha256=sha256,
        size=size,
        converter=ConverterRecord(
            name="native",
            options=recorded(replace(options, keep_owners=False, keep_xattrs=False)),
            versions={"native": str(FORMAT_VERSION), **codec.versions()},
            format=0,
        ),
        tree=tree,
    )


def _copied(
    source: Path,
    writer: DirectWriter,
    *,
    images: bool,
    task: Task,
    without: Container[int] = frozenset(),
) -> tuple[Tree, set[int]]:
    """Hand all of `source` to `writer`, except the members with numbers in `without`.

    Gives the tree that it makes, and the numbers of files with content that later members of the tar replace.
    """
    entries: list[Entry] = []
    numbers = []
    with contextlib.closing(_of_folder(source) if source.is_dir() else _of_tar(source)) as members:
        for number, (entry, read) in enumerate(members):
            if number in without:
                continue
            if b".wh." in entry.path and any(name.startswith(b".wh.") for name in entry.path.split(b"/")):
                raise FormatError(
                    f"{shown(entry.path)} is the name of a whiteout, by which images remove files",
                    hint="data cannot have names that begin with .wh.: rename it",
                )
            writer.add(entry, read)
            task.advance(entry.size)
            entries.append(entry)
            numbers.append(number)
            if len(entries) % 10_000 == 0:
                require_memory(len(entries) * NODE)
    tree = merge([entries])
    if not images and b"oci-layout" in tree:
        raise FormatError(
            "it is a container image, not data",
            hint=f"sqshpipe convert oci:{source} or docker-archive:{source}; --data takes it as data",
        )
    for path, node in tree.items():
        if node.entry.kind is EntryKind.SYMLINK and _leads_out(path, node.entry.target):
            raise FormatError(
                f"the symlink {shown(path)} leads out of it, to {shown(node.entry.target)[1:]}",
                hint="where it is mounted nothing is there: copy what links lead to (cp -rL, tar -h)",
            )
    needed = {node.index for node in tree.values() if node.layer >= 0}
    hidden = {numbers[at] for at, entry in enumerate(entries) if entry.size and at not in needed}
    return tree, hidden


def _leads_out(path: bytes, target: bytes) -> bool:
    """Whether a symlink names something outside of the root, symlinks on its way aside."""
    depth = path.count(b"/")
    for name in target.split(b"/"):
        depth += -1 if name == b".." else name not in (b"", b".")
        if depth < 0:
            return True
    return target.startswith(b"/")


def _kept(path: bytes, kind: EntryKind, mode: int, mtime: float) -> Entry:
    """An entry with what is kept: readable by all, root's, with its time."""
    executable = kind is EntryKind.DIRECTORY or mode & 0o111
    made = 0o777 if kind is EntryKind.SYMLINK else 0o755 if executable else 0o644
    return Entry(path, kind, made, mtime=min(max(int(mtime), 0), _LATEST))


def _of_tar(source: Path) -> Generator[Member]:
    """The members of a tar, in its order."""
    with os.fdopen(untrusted.open_regular(source, follow=True), "rb") as file:
        plain = decompressed(cast("BinaryIO", _Readable(file, source)), "none", limits=LIMITS)
        with read_layer(plain, diff_id=None, limits=LIMITS, background=True) as layer:
            for given, content in layer:
                _require_kind(given.kind, given.path)
                given.mode = _kept(given.path, given.kind, given.mode, 0).mode
                given.uid = given.gid = 0
                given.mtime, given.xattrs = min(given.mtime, _LATEST), ()
                yield given, content.view


class _Readable:
    """A file of which a failing read is the fault of the source."""

    def __init__(self, file: BinaryIO, path: object) -> None:
        self._file = file
        self._path = path

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size)
        except OSError as error:
            raise ToolError(f"cannot read {self._path}: {error.strerror}") from error


def _require_kind(kind: EntryKind | None, path: bytes) -> None:
    if kind is None or kind in (EntryKind.CHAR, EntryKind.BLOCK, EntryKind.FIFO):
        raise FormatError(
            f"{shown(path)} is a device, a pipe or a socket, which data cannot have", hint="leave it out"
        )


def _of_folder(source: Path) -> Generator[Member]:
    """What is in a folder, each folder before its content and names by their bytes; times in seconds.

    Each name is looked up in an open folder and no symlink is followed: others may write there.
    """
    links: dict[tuple[int, int], bytes] = {}
    stack: list[tuple[bytes, int, Iterator[_Found]]] = []
    path = b""
    with ThreadPoolExecutor(_READERS, "data-reader") as pool:
        try:
            root = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            yield _kept(b"", EntryKind.DIRECTORY, 0, os.fstat(root).st_mtime), _nothing
            stack.append((b"", root, _listed(b"", root, pool)))
            while stack:
                prefix, folder, listing = stack[-1]
                found = next(listing, None)
                if found is None:
                    os.close(folder)
                    stack.pop()
                    continue
                path = prefix + found.name
                yield from _of_name(found, path, folder, links)
                if found.kind is EntryKind.DIRECTORY:
                    below = untrusted.open_folder(os.fsdecode(found.name), dir_fd=folder)
                    stack.append((path + b"/", below, _listed(path + b"/", below, pool)))
        except OSError as error:
            if isinstance(error.filename, bytes):  # of a name that was looked at ahead
                path = error.filename
            raise ToolError(
                f"cannot read {source}{shown(path)}: {error.strerror}",
                hint=_STAY,
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
            for _, folder, _ in stack:
                os.close(folder)


@dataclass(slots=True)
class _Found:
    """One name of a folder. `content` is that of a small file, None for others."""

    name: bytes
    kind: EntryKind | None
    status: os.stat_result
    target: bytes = b""
    content: bytes | None = None


def _listed(prefix: bytes, folder: int, pool: ThreadPoolExecutor) -> Iterator[_Found]:
    """What is in an open folder, by name; small files are read some way ahead.

    Raises OSError with the path of what cannot be read, which begins with `prefix`.
    """
    names = deque(sorted(map(os.fsencode, os.listdir(folder))))
    asked: deque[tuple[bytes, Future[_Found]]] = deque()
    while names or asked:
        while names and len(asked) < _AHEAD:
            name = names.popleft()
            asked.append((name, pool.submit(_look, folder, name)))
        name, looked = asked.popleft()
        try:
            found = looked.result()
        except OSError as error:
            raise OSError(error.errno, error.strerror, prefix + name) from error
        yield found


_KINDS = {
    stat.S_IFREG: EntryKind.FILE,
    stat.S_IFDIR: EntryKind.DIRECTORY,
    stat.S_IFLNK: EntryKind.SYMLINK,
}


def _look(folder: int, name: bytes) -> _Found:
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    found = _Found(name, _KINDS.get(stat.S_IFMT(status.st_mode)), status)
    if found.kind is EntryKind.SYMLINK:
        found.target = os.readlink(name, dir_fd=folder)
    elif found.kind is EntryKind.FILE and status.st_size < _SMALL:
        with _opened(folder, found) as file:
            found.content = file.read(_SMALL)
        if len(found.content) != status.st_size:
            raise _changed(found)
    return found


@contextlib.contextmanager
def _opened(folder: int, found: _Found) -> Iterator[BinaryIO]:
    """The file, the same from before it is opened to after it was read."""
    with os.fdopen(untrusted.open_regular(os.fsdecode(found.name), dir_fd=folder), "rb", 0) as file:
        yield file
        now, then = os.fstat(file.fileno()), found.status
        if (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns):  # FUSE may number it anew
            raise _changed(found)


def _changed(found: _Found) -> OSError:
    return OSError(0, "it changed while it was read", found.name)


def _of_name(
    found: _Found, path: bytes, folder: int, links: dict[tuple[int, int], bytes]
) -> Iterator[Member]:
    kind, status = found.kind, found.status
    _require_kind(kind, path)
    entry = _kept(path, kind or EntryKind.FILE, status.st_mode, status.st_mtime)
    entry.target = found.target
    inode = (status.st_dev, status.st_ino)
    if kind is EntryKind.FILE and status.st_nlink > 1 and links.setdefault(inode, path) != path:
        entry.kind, entry.target = EntryKind.HARDLINK, links[inode]
    elif kind is EntryKind.FILE:
        entry.size = status.st_size
        if found.content is None:
            with _opened(folder, found) as file:
                yield entry, _checked(entry, _Readable(file, shown(path)))
        else:
            yield entry, _checked(entry, io.BytesIO(found.content))
        return
    yield entry, _nothing


def _checked(entry: Entry, file: Readable) -> Read:
    """What reads `file`, of as many bytes as `entry` says, and keeps their checksum in `entry`."""
    left = entry.size

    def checked(size: int) -> bytes:
        nonlocal left
        data = file.read(size)
        left -= len(data)
        if not data and left > 0:
            raise ToolError(f"cannot read {shown(entry.path)}: it changed while it was read", hint=_STAY)
        entry.crc32 = zlib.crc32(data, entry.crc32)
        return data

    return checked


def _nothing(_: int) -> bytes:
    return b""
