"""A new layer pack compared with its layer, by what is read back from the disk."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from pipeline.errors import FormatError
from pipeline.squashfs.blocks import LENGTH, Span
from pipeline.squashfs.expand import Blocks, Job, Tails, expand_all
from pipeline.squashfs.layout import file_words
from pipeline.squashfs.packindex import PackIndex
from pipeline.squashfs.reread import reread
from pipeline.squashfs.superblock import Compressor
from pipeline.system.parallel import CancelToken


def check_data(
    descriptor: int, index: PackIndex, compressor: Compressor, *, name: str, workers: int, cancel: CancelToken
) -> None:
    """Read the data of a pack from the disk, expand all of it and compare each file with its crc32.

    The checksums in `index` are those of the layer, taken when it was read. FormatError where anything
    differs; StoppedError when `cancel` is set. Raises OSError.
    """
    if reread(descriptor, index.data_size, index.pieces(), on_bytes=lambda _: cancel.check()):
        raise FormatError(f"{name} has other bytes than were written")
    found: dict[int, int] = {}
    jobs = _jobs(index)
    expand_all(descriptor, name, compressor, jobs, found.__setitem__, workers=workers, cancel=cancel)
    if any(index.checksums[number] != found.get(number) for number, size in enumerate(index.sizes) if size):
        raise FormatError(f"{name} has other content than its layer")


def _jobs(index: PackIndex) -> Iterator[Job]:
    block_size = index.header["block_size"]
    tails = [
        Tails(span=Span(position, word, block_size))
        for position, word in zip(index.fragment_positions, index.fragment_words, strict=True)
    ]
    for number, size in enumerate(index.sizes):
        if size >= block_size:
            yield index.places[number], Blocks(number=number, spans=partial(_spans, index, number))
        elif size:
            tails[index.places[number]].files.append((number, index.details[number], size))
    for shared in tails:
        yield shared.span.position, shared


def _spans(index: PackIndex, number: int) -> Iterator[Span]:
    """The blocks of one file of a pack, found when they are asked for."""
    block_size, position, left = index.header["block_size"], index.places[number], index.sizes[number]
    for word in file_words(index, number, block_size):
        yield Span(position, word, min(block_size, left))
        position += word & LENGTH
        left -= block_size
