"""The ``mksquashfs`` converter: merge the layers, unpack what is left of them to scratch, pack that folder.

Works on any host and, unless owners or attributes are to be kept, without root. It gives the same tree as
``native`` and is the independent check of it.
"""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.config.types import ConvertOptions
from pipeline.convert.blobs import CachedSource, trim
from pipeline.convert.interface import Converted
from pipeline.convert.mksquashfs_program import TIMED_PSEUDO, Mksquashfs, pseudo_definition, pseudo_link
from pipeline.convert.names import shown
from pipeline.convert.tree import content_size, open_entries, read_tree, worker_count
from pipeline.convert.unpack import Preserve, clamped, unpack
from pipeline.errors import FormatError, ToolError
from pipeline.oci.entry import DEFAULT_LIMITS, EntryKind, Limits
from pipeline.oci.source import ImageSource
from pipeline.oci.tree import Tree
from pipeline.progress import Task
from pipeline.registry.source import RegistrySource
from pipeline.squashfs.xattr import kind_of
from pipeline.system.scratch import THE_RESULT, SpaceRequirement, require_space

_BLOCK = 4096  # what most file systems round a file up to
_INODE = 512  # what they use for a file besides
_PLAIN_SHRINKS = 5  # times that a layer stored as it is may become smaller


def convert_mksquashfs(
    source: ImageSource,
    options: ConvertOptions,
    *,
    output: Path,
    scratch: Path,
    cache: Path,
    limits: Limits,
    task: Task,
) -> Converted:
    """Write ``output``; ``scratch`` is an empty folder of ours, ``cache`` holds layers for the next time.

    Raises ToolError (mksquashfs, space, privileges), RegistryError, FormatError.
    """
    tool = Mksquashfs.find()
    _refuse_what_needs_root(options)
    if isinstance(source, RegistrySource):
        source = _fetched(source, cache, scratch, output, task)
    tree = read_tree(
        source, keep_owners=options.keep_owners, keep_xattrs=options.keep_xattrs, limits=limits, task=task
    )
    require_space([_unpacked_need(tree, scratch), _output_need(source, output)])
    root = scratch / "root"
    _refuse_what_is_too_deep(tree, root)
    if options.keep_xattrs:
        _refuse_foreign_attributes(tree)
    devices = _write_devices(tree, scratch / "devices", tool)
    root.mkdir(mode=0o700)
    size = content_size(tree)
    task.total(2 * size)
    unpack(
        tree,
        lambda layer, cancel: open_entries(source, layer, cancel=cancel, limits=limits),
        root,
        keep=Preserve(owners=options.keep_owners, xattrs=options.keep_xattrs),
        task=task,
        workers=worker_count(),
    )
    tool.pack(
        root,
        output,
        compressor=options.compressor,
        zstd_level=options.zstd_level,
        block_size=options.block_size,
        keep_owners=options.keep_owners,
        keep_xattrs=options.keep_xattrs,
        pseudo_file=devices,
        on_progress=_Share(task, size),
    )
    if isinstance(source, CachedSource):
        trim(source.folder)
    return Converted(tree=tree, versions={"mksquashfs": tool.version_text})


def _fetched(source: RegistrySource, cache: Path, scratch: Path, output: Path, task: Task) -> CachedSource:
    """Layers into the cache, after a look at the space for what is known before they are there."""
    cached = CachedSource(source, cache)
    missing = sum(layer.size for layer in cached.missing())
    require_space(
        [
            SpaceRequirement(folder=cache, size=missing, purpose="layers"),
            SpaceRequirement(
                folder=scratch, size=source.manifest().size, purpose="unpacking"
            ),  # at least: exact later
            _output_need(source, output),
        ]
    )
    cached.fetch(task)
    return cached


def _output_need(source: ImageSource, output: Path) -> SpaceRequirement:
    """What the .sqsh takes at least: nobody knows before, but a disk with less than this is too small."""
    layers = source.manifest().layers
    size = sum(layer.size // (_PLAIN_SHRINKS if layer.compression == "none" else 2) for layer in layers)
    return SpaceRequirement(folder=output.parent, size=size, purpose=THE_RESULT)


def _unpacked_need(tree: Tree, scratch: Path) -> SpaceRequirement:
    size = sum(
        -(-node.entry.size // _BLOCK) * _BLOCK + _INODE
        for node in tree.values()
        if node.link_to is None and node.entry.kind is EntryKind.FILE
    )
    return SpaceRequirement(folder=scratch, size=size, purpose="unpacking", files=len(tree))


def _refuse_what_is_too_deep(tree: Tree, root: Path) -> None:
    """mksquashfs names each file from ``root`` on in one word, which the kernel takes up to a length."""
    room = DEFAULT_LIMITS.max_path - len(os.fsencode(root)) - 1
    longest = max(tree, key=len)
    if len(longest) > room:
        raise FormatError(
            f"the path {shown(longest)[:200]}… has {len(longest)} bytes, and mksquashfs takes {room} here",
            hint="use --converter native",
        )


def _refuse_foreign_attributes(tree: Tree) -> None:
    """Attributes that squashfs has no place for: scratch may refuse them, or mksquashfs drop them."""
    for node in tree.values():
        for name, value in node.entry.xattrs:
            kind_of(name, value)


def _refuse_what_needs_root(options: ConvertOptions) -> None:
    if os.geteuid() != 0 and (options.keep_owners or options.keep_xattrs):
        kept = "owners" if options.keep_owners else "extended attributes"
        raise ToolError(
            f"the mksquashfs converter needs root to keep {kept}",
            hint="leave keep_owners and keep_xattrs out, or use --converter native",
        )


def _write_devices(tree: Tree, file: Path, tool: Mksquashfs) -> Path | None:
    """Definitions of the tree's device nodes, which scratch does not hold; None when it is missing."""
    nodes = [
        (path, node) for path, node in tree.items() if node.entry.kind in (EntryKind.CHAR, EntryKind.BLOCK)
    ]
    if not nodes:
        return None
    if tool.version < TIMED_PSEUDO:
        raise ToolError(
            f"the image has device nodes, which mksquashfs {tool.version_text} cannot give a time",
            hint="install squashfs-tools 4.5 or later, or use --converter native",
        )
    lines = []
    for path, node in nodes:
        entry = node.entry
        if node.link_to is not None:
            lines.append(pseudo_link(path, node.link_to))
            continue
        code = "C" if entry.kind is EntryKind.CHAR else "B"
        owner = (entry.uid, entry.gid)
        mode = f"{entry.mode:o}"
        lines.append(
            pseudo_definition(path, code, clamped(entry.mtime), mode, *owner, entry.major, entry.minor)
        )
    file.write_bytes(b"".join(lines))
    return file


class _Share:
    """Turns the share done, 0 to 1, into bytes for a meter."""

    def __init__(self, task: Task, size: int) -> None:
        self._meter = task
        self._size = size
        self._reported = 0

    def __call__(self, share: float) -> None:
        now = int(self._size * min(share, 1.0))
        if now > self._reported:
            self._meter.advance(now - self._reported)
            self._reported = now
