"""Verify: a .sqsh against the image that it was made from. Every byte is read back before it is published.

The reader is our own and shares no code with mksquashfs; what it finds is compared with the merged layers, as
they were read from the image. Content that is proven to lie in the file as in a layer pack is not expanded
again (`proof`); all of it is after the other converters and on request.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.convert.blobs import CachedSource
from pipeline.convert.convert import ConverterRecord, SquashfsFile, WrittenFile
from pipeline.convert.enroot_differences import Aspect, Difference, is_known
from pipeline.convert.names import shown
from pipeline.convert.tree import read_tree, require_sizes, worker_count
from pipeline.convert.unpack import Preserve
from pipeline.errors import FormatError, VerificationError
from pipeline.oci.entry import DEFAULT_LIMITS, EntryKind, Limits
from pipeline.oci.rootfs import FORMAT_VERSION
from pipeline.oci.source import ImageSource
from pipeline.oci.tree import Node
from pipeline.progress import NO_TASK, Task
from pipeline.registry.source import RegistrySource
from pipeline.squashfs.expand import read_all
from pipeline.squashfs.inode import Inode
from pipeline.squashfs.proof import ReadBack
from pipeline.squashfs.reader import SquashfsImage
from pipeline.system.hashing import hashed
from pipeline.system.log import log

COMPARED = ("superblock", "length", "tree", "content")
CHECKS = (*COMPARED, "start files")
QUICK_CHECKS = ("superblock", "length", "tree", "content by packs", "start files")
_PADDING = 4096
_NAMED = 5  # differences that the message names
_MOST = 1000  # differences after which the rest is not looked for
_LINKS = 40  # symlinks in one path, as Linux allows
_START_FILES = (b"bin/sh", b"etc/rc", b"etc/environment")
_DEVICES = (EntryKind.CHAR, EntryKind.BLOCK)
_CHECK_THE_DISK = "convert again; if it stays so, check the disk or use another --converter"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedSquashfs:
    """A file and the checks that it passed."""

    file: SquashfsFile
    checks: tuple[str, ...]


def verify(file: SquashfsFile, task: Task = NO_TASK, *, full: bool = False) -> VerifiedSquashfs:
    """Compare ``file`` with its tree: all that it says of its entries, and every byte of their content.

    After a native conversion content is expanded only where it is not proven to be that of a layer pack;
    with ``full``, and when the file was written to since, all of it. Raises VerificationError, which names
    the first few differences; also for a file that is damaged.
    """
    read = None if full else file.read
    found = compare(file, task, read=read)
    _check_start_files(found, file)
    return VerifiedSquashfs(file=file, checks=CHECKS if read is None else QUICK_CHECKS)


def compare(file: WrittenFile, task: Task = NO_TASK, *, read: ReadBack | None = None) -> dict[bytes, Inode]:
    """As `verify`, for a file that need not be the root of a container. Gives each path that is in it.

    Content that `read` proves is not expanded.
    """
    try:
        with SquashfsImage.open(file.path) as image:
            if read is not None and not read.is_of(image.descriptor):
                read = None
            _check_superblock(image, file)
            comparison = _Comparison(file, read)
            comparison.names(image)
            comparison.content(image, task)
    except FormatError as error:
        raise VerificationError(
            f"{file.path} cannot be read back: {error.message}",
            hint=_CHECK_THE_DISK,
        ) from error
    if comparison.differences:
        raise _failure(file, comparison.differences)
    if comparison.known:
        log.debug("known differences of the converter", paths=comparison.known)
    return comparison.found


def described(
    path: Path,
    source: ImageSource,
    *,
    keep: Preserve,
    by_enroot: bool,
    cache: Path,
    limits: Limits = DEFAULT_LIMITS,
    task: Task = NO_TASK,
) -> SquashfsFile:
    """A .sqsh that is there already, as if it had just been made from ``source``, to be verified.

    Its block size and compressor are taken as they are. Raises VerificationError when it is not a squashfs
    file, FormatError or RegistryError when the image cannot be read.
    """
    try:
        with SquashfsImage.open(path) as image:
            superblock = image.superblock
    except FormatError as error:
        raise VerificationError(error.headline, hint=error.hint) from error
    require_sizes(source, limits)
    if isinstance(source, RegistrySource):
        source = CachedSource(source, cache)
        source.fetch(task)
    tree = read_tree(source, keep_owners=keep.owners, keep_xattrs=keep.xattrs, limits=limits, task=task)
    try:
        with path.open("rb") as stream:
            sha256, size = hashed(stream).hexdigest(), stream.tell()
    except OSError as error:
        raise VerificationError(f"cannot read {path}: {error.strerror}", hint=_CHECK_THE_DISK) from error
    name = "enroot" if by_enroot else "external"
    return SquashfsFile(
        path=path,
        sha256=sha256,
        size=size,
        source=source.manifest().digest,
        converter=ConverterRecord(
            name=name,
            options={"compressor": superblock.compressor.name.lower(), "block_size": superblock.block_size},
            versions={},
            format=FORMAT_VERSION,
        ),
        convert_key="",
        tree=tree,
        config=source.config(),
        layers=source.manifest().layers,
    )


def _check_superblock(image: SquashfsImage, file: WrittenFile) -> None:
    """What was asked for, and a length without anything missing or added; magic and version: the reader."""
    superblock = image.superblock
    compressor, asked = superblock.compressor.name.lower(), file.converter.options.get("compressor", "zstd")
    if compressor != asked:
        raise VerificationError(f"{file.path} is compressed with {compressor}, not {asked}")
    wanted = file.converter.options["block_size"]
    if superblock.block_size != wanted:
        raise VerificationError(f"{file.path} has blocks of {superblock.block_size} bytes, not {wanted}")
    length = file.path.stat().st_size
    padded = -(-superblock.bytes_used // _PADDING) * _PADDING
    if length != file.size or length not in (superblock.bytes_used, padded):
        raise VerificationError(
            f"{file.path} is {length} bytes long, with {superblock.bytes_used} in use; "
            f"it was {file.size} when it was made",
            hint="something else writes to it, or the disk lost data; convert again",
        )


@dataclass(slots=True)
class _Comparison:
    """Compares the entries of a .sqsh with those of the image, and collects the differences."""

    file: WrittenFile
    read: ReadBack | None
    found: dict[bytes, Inode] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    known: int = 0

    def names(self, image: SquashfsImage) -> None:
        """All that is in inodes: every path once, in both directions."""
        tree = self.file.tree
        places: dict[bytes, tuple[int, int]] = {}
        first_names: dict[int, bytes] = {}
        for path, inode in image.walk() if self.read is None else self.read.inodes.items():
            node = tree.get(path)
            self.found[path] = inode
            if node is None:
                self._add(Difference(path=path, aspect=Aspect.EXTRA, node=None))
                continue
            for difference in _inode_differences(path, inode, node):
                self._add(difference)
            first = node.link_to if node.link_to is not None else path
            # The kernel takes inodes with one number for one, whichever it sees first.
            shared = first_names.setdefault(inode.number, first) != first
            place = (inode.number, inode.reference)
            apart = places.setdefault(first, place) != place
            # mksquashfs, which enroot runs too, gives each name of a symlink an inode of its own
            taken = node.entry.kind is EntryKind.SYMLINK and self.file.converter.name != "native"
            if shared or (apart and not taken):
                self._add(Difference(path=path, aspect=Aspect.LINKS, node=node))
            self.known += apart and taken
            if len(self.differences) >= _MOST:
                return
        for path in tree:
            if path not in self.found:
                self._add(Difference(path=path, aspect=Aspect.MISSING, node=tree[path]))

    def content(self, image: SquashfsImage, task: Task) -> None:
        """Every file's bytes, read once an inode, but for what is proven."""
        by_number = {
            inode.number: path
            for path, inode in self.found.items()
            if inode.kind == EntryKind.FILE.value and self._is_to_be_read(path, inode)
        }
        inodes = [self.found[path] for path in by_number.values()]
        task.total(sum(inode.size for inode in inodes))

        def compare(number: int, crc32: int) -> None:
            path = by_number[number]
            node = self.file.tree.get(path)
            task.advance(self.found[path].size)
            if node is not None and node.entry.kind is EntryKind.FILE and crc32 != _checksum(node):
                self._add(Difference(path=path, aspect=Aspect.CONTENT, node=node))

        read_all(image, compare, workers=worker_count(), inodes=inodes)

    def _is_to_be_read(self, path: bytes, inode: Inode) -> bool:
        """Files of another size are differences already, and may claim any."""
        node = self.file.tree.get(path)
        if node is None or inode.size != node.entry.size:
            return False
        return self.read is None or not self.read.proves(inode, node)

    def _add(self, difference: Difference) -> None:
        config = self.file.config if isinstance(self.file, SquashfsFile) else None
        if config is not None and self.file.converter.name == "enroot" and is_known(difference, config):
            self.known += 1
        else:
            self.differences.append(difference)


def _inode_differences(path: bytes, inode: Inode, node: Node) -> Iterator[Difference]:
    entry = node.entry
    differs = functools.partial(Difference, path=path, node=node)
    if inode.kind != entry.kind.value:
        yield differs(aspect=Aspect.KIND, found=inode.kind.name.lower(), expected=entry.kind.name.lower())
        return
    if inode.mode != entry.mode:
        yield differs(aspect=Aspect.MODE, found=f"{inode.mode:o}", expected=f"{entry.mode:o}")
    if (inode.uid, inode.gid) != (entry.uid, entry.gid):
        yield differs(
            aspect=Aspect.OWNER, found=f"{inode.uid}:{inode.gid}", expected=f"{entry.uid}:{entry.gid}"
        )
    time = min(max(entry.mtime, 0), 0xFFFF_FFFF)  # squashfs keeps unsigned 32-bit seconds
    if inode.mtime != time:
        yield differs(aspect=Aspect.TIME, found=str(inode.mtime), expected=str(time))
    if entry.kind is EntryKind.FILE and inode.size != entry.size:
        yield differs(aspect=Aspect.SIZE, found=str(inode.size), expected=str(entry.size))
    if entry.kind is EntryKind.SYMLINK and inode.target != entry.target:
        yield differs(aspect=Aspect.TARGET, found=shown(inode.target), expected=shown(entry.target))
    if entry.kind in _DEVICES and (inode.major, inode.minor) != (entry.major, entry.minor):
        found, expected = f"{inode.major}:{inode.minor}", f"{entry.major}:{entry.minor}"
        yield differs(aspect=Aspect.DEVICE, found=found, expected=expected)
    if sorted(inode.xattrs) != sorted(entry.xattrs):
        yield differs(aspect=Aspect.XATTRS)


def _checksum(node: Node) -> int:
    return node.entry.crc32 if node.content is None else zlib.crc32(node.content)


def _check_start_files(found: dict[bytes, Inode], file: WrittenFile) -> None:
    """What enroot needs to start a container, looked for as the kernel would inside of it."""
    for path in _START_FILES:
        inode = found.get(_followed(path, found))
        if inode is None or inode.kind != EntryKind.FILE.value:
            if path == b"bin/sh":
                raise VerificationError(
                    "the image has no /bin/sh, by which enroot and Pyxis start every image",
                    hint="add a shell to the image; a static busybox is enough",
                )
            raise VerificationError(
                f"{file.path} has no {shown(path)}, without which enroot cannot start it",
                hint="convert with another --converter",
            )


def _followed(path: bytes, found: dict[bytes, Inode]) -> bytes:
    """Where ``path`` leads through symlinks, which never leave the root; itself when it leads nowhere."""
    parts = path.split(b"/")
    at: list[bytes] = []
    links = 0
    while parts:
        part = parts.pop(0)
        if part in (b"", b"."):
            continue
        if part == b"..":
            del at[-1:]
            continue
        at.append(part)
        inode = found.get(b"/".join(at))
        if inode is not None and inode.kind == EntryKind.SYMLINK.value:
            links += 1
            if links > _LINKS:
                return path
            at = [] if inode.target.startswith(b"/") else at[:-1]
            parts = inode.target.split(b"/") + parts
    return b"/".join(at)


def _failure(file: WrittenFile, differences: list[Difference]) -> VerificationError:
    lines = [f"  {shown(each.path)}: {_line(each)}" for each in differences[:_NAMED]]
    more = len(differences) - len(lines)
    if more:
        lines.append(f"  and {more} more" + (" at least" if len(differences) >= _MOST else ""))
    count = f"{len(differences)} places" if len(differences) > 1 else "one place"
    return VerificationError(
        f"{file.path} differs from what it was made of in {count}:",
        details=lines,
        hint=(
            "use --converter native or mksquashfs"
            if file.converter.name == "enroot"
            else "convert again; if it stays so, please report it with the image's name"
        ),
    )


def _line(difference: Difference) -> str:
    what = difference.aspect.value
    if difference.found or difference.expected:
        return f"{what} {difference.found}, should be {difference.expected}"
    if difference.aspect in (Aspect.MISSING, Aspect.EXTRA):
        return what
    return f"{what} differ" if difference.aspect in (Aspect.LINKS, Aspect.XATTRS) else f"{what} differs"
