"""The content of a published .sqsh again: against the `layers` beside its release, or against its image.

`layers` have the entries of each layer with the checksum of each file. Merged as a conversion merges them,
they give the tree that the file must hold; no registry is asked. Only what an image's config decides is not
in them: enroot's four files, and the folders that were made for the working directory and the volumes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.convert.convert import ConverterRecord, WrittenFile
from pipeline.convert.native import entries
from pipeline.convert.unpack import Preserve
from pipeline.convert.verify import compare, described
from pipeline.errors import FormatError, VerificationError
from pipeline.oci.config import ImageConfig
from pipeline.oci.digest import Digest
from pipeline.oci.entry import DEFAULT_LIMITS, Entry, EntryKind, Limits
from pipeline.oci.merge import WithheldError, merge
from pipeline.oci.platform import Platform
from pipeline.oci.rootfs import FORMAT_VERSION, enroot_rootfs
from pipeline.oci.source import ImageSource
from pipeline.oci.tree import Node, Tree
from pipeline.progress import NO_TASK, Task
from pipeline.squashfs.inode import Inode, Kind
from pipeline.squashfs.layers import read_layers
from pipeline.squashfs.reader import SquashfsImage
from pipeline.store.layout import Layout
from pipeline.store.record import DATA, Record, mapping, rows
from pipeline.store.sharing import layers_of, with_attached
from pipeline.store.trust import Required

_LARGEST_FILE = 8 << 20  # bytes of one of enroot's files; they hold little more than an image's config


class NotComparable(Exception):
    """Why nothing here says what the file of a release must hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recheck:
    """Compares the files of one store's releases. `synced`: also by `layers` that `sync` brought.

    `image` opens the image of a record, which is then read from its registry; None: by `layers` only.
    """

    layout: Layout
    required: Required | None = None
    synced: bool = False
    image: Callable[[Record], AbstractContextManager[ImageSource]] | None = None
    cache: Path = Path()
    limits: Limits = DEFAULT_LIMITS

    def __call__(self, record: Record, task: Task = NO_TASK) -> str:
        """Expand every byte of a release's file and compare it; gives why that cannot be, else nothing.

        Raises VerificationError when the content is wrong, and what reading the image raises.
        """
        path = self.layout.blob(record.sha256)
        try:
            file = self._by_layers(record, path) if self.image is None else self._by_image(record, path)
        except NotComparable as reason:
            return str(reason)
        compare(file, task)
        return ""

    def _by_image(self, record: Record, path: Path) -> WrittenFile:
        converter = mapping(record.converter)
        if record.external or record.kind == DATA or not converter or self.image is None:
            raise NotComparable("it was not made from an image")
        _require_same_format(converter)
        keep = _kept(mapping(converter.get("options")))
        by_enroot = converter.get("name") == "enroot"
        with self.image(record) as source:
            return described(
                path, source, keep=keep, by_enroot=by_enroot, cache=self.cache, limits=self.limits
            )

    def _by_layers(self, record: Record, path: Path) -> WrittenFile:
        converter = mapping(record.converter)
        if converter.get("name") != "native":
            raise NotComparable("it has no layers beside it: native did not make it")
        named = with_attached(self.layout, record, self.required)
        stored = layers_of(self.layout, named, synced=self.synced)
        if stored is None:
            raise NotComparable("it has no layers beside it that this store's publishers vouch for")
        options = mapping(converter.get("options"))
        _require_same_format(converter)
        tree = _tree_of(record, stored, options)
        try:
            tree = _with_own_files(tree, path)
        except FormatError as error:
            raise VerificationError(f"{path} cannot be read: {error.message}") from error
        return WrittenFile(
            path=path,
            sha256=record.sha256,
            size=record.size,
            converter=ConverterRecord(name="native", options=options, versions={}, format=FORMAT_VERSION),
            tree=tree,
        )


def _require_same_format(converter: Mapping[str, Any]) -> None:
    """Raise NotComparable for a file made by other rules: what is right by those is wrong by these."""
    if converter.get("format") != FORMAT_VERSION:
        raise NotComparable("another version of sqshpipe made it, by other rules than this one's")


def _kept(options: Mapping[str, Any]) -> Preserve:
    return Preserve(owners=options.get("keep_owners") is True, xattrs=options.get("keep_xattrs") is True)


def _tree_of(record: Record, stored: bytes, options: Mapping[str, Any]) -> Tree:
    """What the layers of a release add up to. Raises NotComparable when they do not say it."""
    nothing = ImageConfig(raw=b"", digest=Digest.of(b""), platform=Platform(os="linux", architecture=""))
    try:
        indexes = {str(one.header.get("diff_id")): one for one in read_layers(stored, size=record.size)}
        order = [str(row.get("diff_id")) for row in rows(record.provenance.get("layers"))]
        if not order or set(order) != indexes.keys():
            raise NotComparable("its record does not say in which order its layers lie")
        merged = merge([entries(indexes[diff_id]) for diff_id in order])
        keep = _kept(options)
        return enroot_rootfs(merged, nothing, keep_owners=keep.owners, keep_xattrs=keep.xattrs)
    except WithheldError as error:
        raise NotComparable("it hides a link on which its tree depends") from error
    except FormatError as error:
        raise NotComparable(f"its layers cannot be used: {error.message}") from error


def _with_own_files(tree: Tree, path: Path) -> Tree:
    """The tree with what the image's config decides, as the file has it. Raises FormatError."""
    nodes = dict(tree)
    with SquashfsImage.open(path) as image:
        for name, inode in image.walk():
            node = nodes.get(name)
            if node is not None and node.content is not None and inode.kind is Kind.FILE:
                content = image.read(inode, limit=_LARGEST_FILE)
                entry = Entry(name, EntryKind.FILE, 0o644, mtime=inode.mtime, size=len(content))
                nodes[name] = Node(entry, content=content)
            elif inode.kind is Kind.DIRECTORY and _may_be_made(node, inode):
                nodes[name] = Node(Entry(name, EntryKind.DIRECTORY, 0o755, mtime=inode.mtime))
    return Tree(nodes)


def _may_be_made(node: Node | None, inode: Inode) -> bool:
    """Whether a folder can be one that no layer has."""
    if node is not None:
        return node.layer < 0 and node.entry.kind is EntryKind.DIRECTORY
    return (inode.mode, inode.uid, inode.gid, inode.xattrs) == (0o755, 0, 0, ())
