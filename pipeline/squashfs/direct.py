"""An image of files as they are read: their content goes straight to its place, and no layer pack is made.

For what is read once and merged with nothing, such as a folder of data.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from pipeline.squashfs.codecs import Stored
from pipeline.squashfs.compressors import JOB_SIZE, Compressors
from pipeline.squashfs.packwriter import EntryLike, PackWriter, Read
from pipeline.squashfs.stitch import ImageWriter, StitchOptions
from pipeline.squashfs.tree import NodeLike
from pipeline.squashfs.writing import write_at

_IN_FLIGHT = 96 << 20  # plain bytes between reading and writing


class DirectWriter:
    """Writes an image into the empty file open as `target`: `add` each entry, then `finish` with the tree.

    The bytes depend on the entries, their order, the tree and `options` alone.
    """

    def __init__(self, target: int, options: StitchOptions, compressors: Compressors) -> None:
        self._image = ImageWriter({}, (), target, options)
        self._target = target
        self._end = self._image.head_size
        self._files = PackWriter(
            self._write,
            compressors,
            block_size=options.block_size,
            header={},
            in_flight=max(4, _IN_FLIGHT // max(options.block_size, JOB_SIZE)),
        )

    def add(self, entry: EntryLike, read: Read) -> int:
        """Take an entry and all of its content; returns its number, which its node has as `index`."""
        return self._files.add(entry, read)

    def finish(self, nodes: Mapping[bytes, NodeLike]) -> None:
        """Write the tables for the tree `nodes`, all of layer 0, and wait until the image is on disk.

        Raises FormatError for what squashfs cannot hold, OSError when the file cannot be written.
        """
        self._image.take(nodes, self._files.finish())
        head, tables = self._image.tables(self._end)
        write_at(self._target, [tables], self._end)
        write_at(self._target, [head], 0)
        os.fsync(self._target)

    def _write(self, parts: list[Stored]) -> None:
        self._end += write_at(self._target, parts, self._end)
