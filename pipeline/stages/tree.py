"""The tree that a .sqsh must hold: an image's layers read, merged, and made what enroot expects of a root."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import BinaryIO, cast

from pipeline.errors import FormatError
from pipeline.oci.entry import Entry, EntryKind
from pipeline.oci.layer import Content, decompressed, read_layer
from pipeline.oci.merge import merge
from pipeline.oci.rootfs import enroot_rootfs
from pipeline.oci.source import ImageSource
from pipeline.oci.tree import Tree
from pipeline.progress import SILENT, Meter
from pipeline.stages.crew import Halt, work

MAX_WORKERS = 8


def read_tree(
    source: ImageSource, *, keep_owners: bool = False, keep_xattrs: bool = False, meter: Meter
) -> Tree:
    """Read every layer of ``source`` to its end, in parallel, and merge them.

    Digests of blobs and unpacked layers are checked, the crc32 of every file is in its entry. Raises
    FormatError for bytes that are no image, and what ``source`` raises.
    """
    layers = source.manifest().layers
    first = {layer.digest: index for index, layer in reversed(list(enumerate(layers)))}
    once = sorted(first.values())  # the same layer twice is read once
    meter.total(sum(layers[index].size for index in once))
    workers = worker_count()
    ahead = len(once) < workers  # processors to spare: decompress in threads of their own

    def entries_of(index: int, halt: Halt) -> list[Entry]:
        with open_entries(source, index, halt=halt, meter=meter, background=ahead) as members:
            return [entry for entry, _ in members]

    read = work([functools.partial(entries_of, index) for index in once], workers=workers)
    by_index = dict(zip(once, read, strict=True))
    try:
        merged = merge([by_index[first[layer.digest]] for layer in layers])
        return enroot_rootfs(merged, source.config(), keep_owners=keep_owners, keep_xattrs=keep_xattrs)
    except FormatError as error:
        raise FormatError(f"the layers of {source.name}: {error.message}", hint=error.hint) from error


@contextlib.contextmanager
def open_entries(
    source: ImageSource, index: int, *, halt: Halt, meter: Meter = SILENT, background: bool = False
) -> Iterator[Iterator[tuple[Entry, Content]]]:
    """The entries of layer ``index`` with their content; ``meter`` counts the bytes as they are stored.

    What is wrong with the layer is raised as FormatError that names it.
    """
    descriptor = source.manifest().layers[index]
    try:
        with source.open_layer(index) as blob:
            plain = decompressed(cast("BinaryIO", _Counted(blob, meter, halt)), descriptor.compression)
            with read_layer(plain, diff_id=source.config().diff_ids[index], background=background) as layer:
                yield iter(layer)
    except FormatError as error:
        if error.message.startswith("layer "):
            raise
        number = f"layer {index + 1} of {len(source.manifest().layers)}"
        raise FormatError(
            f"{number} ({descriptor.digest}) of {source.name}: {error.message}", hint=error.hint
        ) from error


def content_size(tree: Tree) -> int:
    """Bytes of all files, each hard link once: what a converter reads or writes."""
    return sum(
        node.entry.size for node in tree.values() if node.entry.kind is EntryKind.FILE and not node.link_to
    )


def worker_count() -> int:
    """Threads that are worth having: the processors that this process may use, within bounds."""
    return min(MAX_WORKERS, len(os.sched_getaffinity(0)))


class _Counted:
    """A binary stream whose bytes are counted as they pass, and that ends when the others failed."""

    def __init__(self, stream: BinaryIO, meter: Meter, halt: Halt) -> None:
        self._stream = stream
        self._meter = meter
        self._halt = halt

    def read(self, size: int = -1) -> bytes:
        self._halt.check()
        data = self._stream.read(size)
        self._meter.advance(len(data))
        return data
