"""Reading single tails: the content of files that share a block with others."""

from __future__ import annotations

from collections.abc import Sequence

from isal import isal_zlib

from pipeline.errors import FormatError
from pipeline.squashfs.blocks import Span, read_fragment
from pipeline.squashfs.codecs import make_expand
from pipeline.squashfs.pack import Pack
from pipeline.squashfs.superblock import Compressor


class TailReader:
    """Single tails out of packs' fragments; those of one fragment one after the other cost one expansion."""

    def __init__(self, packs: Sequence[Pack], compressor: Compressor) -> None:
        self._packs = packs
        self._expand = make_expand(compressor)
        self._known: tuple[int, int] = (-1, -1)
        self._plain = b""

    def read(self, layer: int, number: int) -> bytes:
        """The content of an entry that lies in a fragment.

        Raises the pack's error when it is not what was packed.
        """
        pack = self._packs[layer]
        tail, size = pack.tail(number), pack.index.sizes[number]
        if self._known != (layer, tail.number):
            span = Span(tail.position, tail.word, pack.index.header["block_size"])
            try:
                self._plain = read_fragment(tail.descriptor, span, self._expand, str(pack.path))
            except FormatError as error:
                raise pack.tail_damaged(number, error.message) from error
            self._known = (layer, tail.number)
        content = self._plain[tail.offset : tail.offset + size]
        if len(content) != size or isal_zlib.crc32(content) != pack.index.checksums[number]:
            raise pack.tail_damaged(number, f"the content of entry {number} has another checksum")
        return content
