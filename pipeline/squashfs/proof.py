"""The quick check: a stitched file, read back from the disk once, of which nearly nothing is expanded.

All blocks of a layer pack were expanded and compared when the pack was made. So a file's content need not be
expanded when its stored bytes lie in the image as they lie in a pack, and the pack says that they are the
content of the entry that the tree names, or the same content. What is in the image is taken from its own
inodes and fragment table, read from the disk. Which bytes of it are which of a pack is a claim of the stitch
that counts for nothing until each stored block has the crc32 that the pack lists. Whatever is not proven so
is expanded by `verify`, like everything in files without packs.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path

from pipeline.squashfs.blocks import LENGTH
from pipeline.squashfs.inode import NO_FRAGMENT, Inode
from pipeline.squashfs.layout import Range, file_words
from pipeline.squashfs.pack import Pack
from pipeline.squashfs.packindex import PackIndex
from pipeline.squashfs.reader import SquashfsImage
from pipeline.squashfs.reread import reread
from pipeline.squashfs.tree import NodeLike
from pipeline.system.disk import drop_cache
from pipeline.system.parallel import Crew


class ReadBack:
    """What was read from the disk of one stitched file: its sha256 in hex, every path with its inode.

    `ranges` are those whose stored blocks all have the checksums that the pack of their layer lists, in the
    order of the file.
    """

    def __init__(
        self,
        *,
        sha256: str,
        image: SquashfsImage,
        inodes: dict[bytes, Inode],
        packs: Sequence[PackIndex],
        ranges: Sequence[Range],
    ) -> None:
        self.sha256 = sha256
        self.inodes = inodes
        self.superblock = image.superblock
        self._state = _state(image.descriptor)
        self._fragments = image.fragments
        self._packs = packs
        self._ranges = ranges
        self._starts = [item.target for item in ranges]
        self._known: dict[int, tuple[int, int] | None] = {}
        self._numbers: dict[int, dict[int, int]] = {}
        self._tails: dict[int, dict[tuple[int, int], int]] = {}
        self._files: dict[int, dict[int, int]] = {}

    def is_of(self, descriptor: int) -> bool:
        """Whether this open file is the one that was read, and nobody has written to it since."""
        return _state(descriptor) == self._state

    def proves(self, inode: Inode, node: NodeLike) -> bool:
        """Whether a file's content is proven to be that of `node`, so that it need not be expanded."""
        layer, index, size = node.layer, node.index, inode.size
        if not 0 <= layer < len(self._packs):
            return False
        pack = self._packs[layer]
        same = size == pack.sizes[index] == node.entry.size and pack.checksums[index] == node.entry.crc32
        if not same or not size:
            return False
        if inode.words:
            return inode.fragment == NO_FRAGMENT and self._has_blocks(inode, layer, index)
        return inode.fragment != NO_FRAGMENT and self._has_tail(inode, layer, index)

    def _has_tail(self, inode: Inode, layer: int, index: int) -> bool:
        if inode.fragment not in self._known:
            self._known[inode.fragment] = self._fragment(inode.fragment)
        known = self._known[inode.fragment]
        if known is None:
            return False
        pack = self._packs[layer]
        if known == (layer, pack.places[index]) and inode.offset == pack.details[index]:
            return True
        other, fragment = known
        if other not in self._tails:
            self._tails[other] = _tails(self._packs[other], self.superblock.block_size)
        found = self._tails[other].get((fragment, inode.offset))
        if found is None or self._packs[other].sizes[found] != inode.size:
            return False
        return self._packs[other].digest(found) == pack.digest(index)

    def _fragment(self, number: int) -> tuple[int, int] | None:
        """The layer of a fragment of the image, and which fragment of its pack it is."""
        if number >= len(self._fragments):
            return None
        position, word = self._fragments[number]
        origin = self._origin(position, word & LENGTH)
        if origin is None:
            return None
        layer, source = origin
        pack = self._packs[layer]
        if layer not in self._numbers:
            self._numbers[layer] = _fragments(pack)
        at = self._numbers[layer].get(source)
        return (layer, at) if at is not None and pack.fragment_words[at] == word else None

    def _has_blocks(self, inode: Inode, layer: int, index: int) -> bool:
        pack, block_size = self._packs[layer], self.superblock.block_size
        words = array("I", inode.words)
        if file_words(pack, index, block_size) != words:
            return False
        length = sum(word & LENGTH for word in words)
        if not length:
            return inode.start <= self.superblock.bytes_used  # holes only
        origin = self._origin(inode.start, length)
        if origin is None:
            return False
        if origin == (layer, pack.places[index]):
            return True
        other, source = origin
        if other not in self._files:
            self._files[other] = _files(self._packs[other], block_size)
        found = self._files[other].get(source)
        if found is None or self._packs[other].sizes[found] != inode.size:
            return False
        same = self._packs[other].checksums[found] == pack.checksums[index]
        return same and file_words(self._packs[other], found, block_size) == words

    def _origin(self, position: int, length: int) -> tuple[int, int] | None:
        """Which layer these bytes of the image come from, and where its pack has them; None: not proven."""
        at = bisect_right(self._starts, position) - 1
        if at < 0 or not length:
            return None
        item = self._ranges[at]
        if position + length > item.target + item.length:
            return None
        return item.layer, item.source + position - item.target


def _fragments(pack: PackIndex) -> dict[int, int]:
    """The number of the fragment at each position; of some a release may not say where they were."""
    columns = enumerate(zip(pack.fragment_positions, pack.fragment_words, strict=True))
    return {position: number for number, (position, word) in columns if word}


def _state(descriptor: int) -> tuple[int, ...]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _tails(pack: PackIndex, block_size: int) -> dict[tuple[int, int], int]:
    """The entry whose content lies at each fragment and offset."""
    columns = enumerate(zip(pack.sizes, pack.places, pack.details, pack.visible(), strict=False))
    return {
        (place, detail): number
        for number, (size, place, detail, shown) in columns
        if shown and 0 < size < block_size
    }


def _files(pack: PackIndex, block_size: int) -> dict[int, int]:
    """The file whose first stored block lies at each place; those of holes only lie nowhere."""
    return {
        pack.places[number]: number
        for number, (size, shown) in enumerate(zip(pack.sizes, pack.visible(), strict=False))
        if shown and size >= block_size and any(file_words(pack, number, block_size))
    }


def read_back(
    path: Path,
    packs: Sequence[Pack],
    ranges: Sequence[Range],
    *,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> ReadBack:
    """Read a stitched file from the disk, not from the page cache; `packs` by layer, `ranges` as stitched.

    PackDamaged when a pack has other bytes than it lists. What else is wrong is for the check to find.
    Raises FormatError for tables that cannot be read, OSError.
    """
    with path.open("rb") as file:
        drop_cache(file.fileno())
        end = os.fstat(file.fileno()).st_size
    with SquashfsImage.open(path) as image, Crew(1, name="walk") as crew:
        walked = crew.submit(lambda: dict(image.walk()))
        blocks = list(_blocks(packs, ranges))
        hasher = sha256()
        wrong = set(
            reread(
                image.descriptor,
                end,
                [(block.target, block.length, checksum) for block, checksum in blocks],
                hasher=hasher,
                on_bytes=on_bytes,
            )
        )
        proven: list[Range] = []
        for block, checksum in blocks:
            if (block.target, block.length, checksum) not in wrong:
                _add(proven, block)
                continue
            piece = (block.source, block.length, checksum)
            packs[block.layer].read_pieces([piece], memoryview(bytearray(block.length)))
        usable = all(_is_usable(pack.index, image) for pack in packs)
        return ReadBack(
            sha256=hasher.hexdigest(),
            image=image,
            inodes=walked.result(),
            packs=[pack.index for pack in packs],
            ranges=proven if usable else [],
        )


def _is_usable(pack: PackIndex, image: SquashfsImage) -> bool:
    """Whether a pack was compared with its layer when it was made, and has this image's block size."""
    block_size = image.superblock.block_size
    return pack.header.get("verified") is True and pack.header.get("block_size") == block_size


def _blocks(packs: Sequence[Pack], ranges: Sequence[Range]) -> Iterator[tuple[Range, int]]:
    """Every whole stored block in the ranges, with its crc32."""
    for item in ranges:
        pieces, end = packs[item.layer].pieces(), item.source + item.length
        for at in range(bisect_left(pieces, (item.source,)), len(pieces)):
            position, length, checksum = pieces[at]
            if position + length > end:
                break
            yield Range(item.layer, position, length, item.target + position - item.source), checksum


def _add(proven: list[Range], block: Range) -> None:
    """One range of all blocks that follow each other in image and pack."""
    last = proven[-1] if proven else None
    if (
        last is not None
        and last.layer == block.layer
        and last.source + last.length == block.source
        and last.target + last.length == block.target
    ):
        proven[-1] = Range(last.layer, last.source, last.length + block.length, last.target)
    else:
        proven.append(block)
