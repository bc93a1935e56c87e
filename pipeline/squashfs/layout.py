"""Which bytes of the packs go into an image, and where they go.

Only content that the tree refers to is taken: bytes that upper layers hide are cut out of the copy, and a
fragment is not copied when one of its tails belongs to no file of its layer that the tree shows: the tails
still needed are packed again. Files with the same content are stored once. The copy of the lowest layer
stays, so that lower packs are copied whole.

All of it follows from the packs' indexes and the tree alone, never from what is in a cache.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pipeline.squashfs.blocks import LENGTH
from pipeline.squashfs.pack import Pack
from pipeline.squashfs.packindex import DIGEST_SIZE, PackIndex

ALIGNMENT = 4096  # file systems clone ranges that begin on such a border at both ends
_ALIGN_FROM = 1 << 16  # shorter ranges are not worth a gap
_DEAD_SHARE = 4  # a fragment is packed again when a quarter of it is unused
_COMPARE = 1 << 20
LAYER_SHIFT = 40  # bits of a content number that hold the entry's position


@dataclass(frozen=True, slots=True)
class Range:
    """`length` bytes at `source` of pack number `layer` go to `target` in the image."""

    layer: int
    source: int
    length: int
    target: int


@dataclass(slots=True)
class Moved:
    """A tail that is packed again: entry `index` of `layer`."""

    layer: int
    index: int


@dataclass(slots=True, kw_only=True)
class Layout:
    """Where everything goes.

    `places` and `offsets` have for each layer and entry what an inode stores: the position of a file's
    blocks, or the number of its fragment in the image and the offset in it. `copied` has for each layer and
    fragment of its pack one more than the number in the image, or 0 when it is not copied; `covered`, how
    many of its bytes belong to files that the tree shows.
    """

    ranges: list[Range] = field(default_factory=list)
    end: int = 0
    fragments: list[tuple[int, int]] = field(default_factory=list)
    moved: list[Moved] = field(default_factory=list)
    places: list[array[int]] = field(default_factory=list)
    offsets: list[array[int]] = field(default_factory=list)
    copied: list[array[int]] = field(default_factory=list)
    covered: list[array[int]] = field(default_factory=list)
    followers: list[tuple[int, int]] = field(default_factory=list)  # (content, the moved one that it equals)


def content_number(layer: int, index: int) -> int:
    """One number for an entry of a layer; numbers sort as layers and entries do."""
    return layer << LAYER_SHIFT | index


def split_number(number: int) -> tuple[int, int]:
    """The layer and the entry of a content number."""
    return number >> LAYER_SHIFT, number & ((1 << LAYER_SHIFT) - 1)


def lay_out(packs: Sequence[Pack], contents: Iterable[int], *, start: int, block_size: int) -> Layout:
    """Decide about every byte of the packs.

    `contents` are the content numbers of the entries whose bytes the tree needs, in any order; data begins at
    `start` or the next border. PackDamaged when a pack cannot be read where two files are compared.
    """
    planner = _Planner(packs, block_size)
    per_layer: list[list[int]] = [[] for _ in packs]
    mask = (1 << LAYER_SHIFT) - 1
    for number in sorted(set(contents)):
        per_layer[number >> LAYER_SHIFT].append(number & mask)
    for layer, indexes in enumerate(per_layer):
        planner.sort_layer(layer, indexes)
    position = start
    for layer in range(len(packs)):
        position = planner.place_layer(layer, position)
    planner.layout.end = position
    planner.follow()
    return planner.layout


class _Planner:
    def __init__(self, packs: Sequence[Pack], block_size: int) -> None:
        self._packs = packs
        self._block_size = block_size
        self.layout = Layout()
        self._tails: dict[bytes, int] = {}  # digest of a tail -> the content that has it
        self._block_files: dict[tuple[int, int, bytes], list[int]] = {}
        self._extents: list[list[tuple[int, int]]] = [[] for _ in packs]
        self._shown_tails: list[list[int]] = [[] for _ in packs]
        self._live_tails: list[list[int]] = [[] for _ in packs]  # those of them that no lower one equals
        self._live_files: list[list[int]] = [[] for _ in packs]
        self._same: list[tuple[int, int]] = []  # (content, the lower one that it equals)

    def sort_layer(self, layer: int, indexes: list[int]) -> None:
        """Find what of one layer is needed, and what a lower one has already."""
        index = self._packs[layer].index
        sizes, digests = index.sizes, bytes(index.digests)
        tails, same, live = self._tails, self._same, self._live_tails[layer]
        shown = self._shown_tails[layer]
        block_size = self._block_size
        base = layer << LAYER_SHIFT
        for number in indexes:
            if sizes[number] >= block_size:
                self._sort_file(layer, number)
                continue
            shown.append(number)
            digest = digests[number * DIGEST_SIZE : (number + 1) * DIGEST_SIZE]
            first = tails.setdefault(digest, base | number)
            if first == base | number:
                live.append(number)
            else:
                same.append((base | number, first))

    def _sort_file(self, layer: int, number: int) -> None:
        index = self._packs[layer].index
        words = file_words(index, number, self._block_size)
        key = (index.sizes[number], index.checksums[number], words.tobytes())
        known = self._block_files.setdefault(key, [])
        length = _stored_length(words)
        for other in known:
            other_layer, other_number = split_number(other)
            place = self._packs[other_layer].index.places[other_number]
            if _same_bytes(self._packs[other_layer], place, self._packs[layer], index.places[number], length):
                self._same.append((content_number(layer, number), other))
                return
        known.append(content_number(layer, number))
        self._live_files[layer].append(number)
        if length:
            self._extents[layer].append((index.places[number], length))

    def place_layer(self, layer: int, position: int) -> int:
        """Give every needed byte of one pack its position in the image; returns where the pack ends there."""
        index = self._packs[layer].index
        layout = self.layout
        places, offsets = index.places[:], index.details[:]
        kept = self._kept_fragments(layer)
        if any(keep and not word for keep, word in zip(kept, index.fragment_words, strict=True)):
            raise self._packs[layer].lacking()  # a release that is its source has not all of it
        extents = self._extents[layer]
        extents += [
            (at, index.fragment_words[number] & LENGTH)
            for number, at in enumerate(index.fragment_positions)
            if kept[number]
        ]
        ranges = _ranges(layer, extents, position)
        layout.ranges += ranges
        starts = [item.source for item in ranges]
        shifts = [item.target - item.source for item in ranges]
        for number in self._live_files[layer]:
            place = places[number]
            at = bisect_right(starts, place) - 1
            places[number] = place + shifts[at] if at >= 0 else 0  # a file of holes has no place
        renumbered = array("Q", bytes(8 * len(kept)))
        copied = array("I", bytes(4 * len(kept)))
        for number, keep in enumerate(kept):
            if keep:
                place = index.fragment_positions[number]
                renumbered[number] = len(layout.fragments)
                at = bisect_right(starts, place) - 1
                layout.fragments.append((place + shifts[at], index.fragment_words[number]))
                copied[number] = len(layout.fragments)
        for number in self._live_tails[layer]:
            fragment = places[number]
            if kept[fragment]:
                places[number] = renumbered[fragment]
            else:
                layout.moved.append(Moved(layer, number))
        layout.copied.append(copied)
        layout.places.append(places)
        layout.offsets.append(offsets)
        return ranges[-1].target + ranges[-1].length if ranges else position

    def _kept_fragments(self, layer: int) -> bytearray:
        """For each fragment of a pack: 1 when it is copied as it is.

        Only entries that the tree shows decide: nothing needs to be known of the content of others.
        """
        index = self._packs[layer].index
        used = array("Q", bytes(8 * len(index.fragment_sizes)))
        shown = array("Q", used)
        sizes, places, offsets = index.sizes, index.places, index.details
        for number in self._live_tails[layer]:
            used[places[number]] += sizes[number]
        for fragment, _, size in {(places[n], offsets[n], sizes[n]) for n in self._shown_tails[layer]}:
            shown[fragment] += size
        self.layout.covered.append(shown)
        return bytearray(
            size == all_shown and have > 0 and (size - have) * _DEAD_SHARE <= size
            for have, all_shown, size in zip(used, shown, index.fragment_sizes, strict=True)
        )

    def follow(self) -> None:
        """Let the names of one content share one place; those of moved tails must wait for theirs."""
        layout = self.layout
        moved = {content_number(tail.layer, tail.index) for tail in layout.moved}
        for content, first in self._same:
            if first in moved:
                layout.followers.append((content, first))
            else:
                copy_place(layout, content, first)


def copy_place(layout: Layout, content: int, first: int) -> None:
    """Let `content` lie where `first` does."""
    layer, number = split_number(content)
    first_layer, first_number = split_number(first)
    layout.places[layer][number] = layout.places[first_layer][first_number]
    layout.offsets[layer][number] = layout.offsets[first_layer][first_number]


def file_words(index: PackIndex, number: int, block_size: int) -> array[int]:
    """The block words of a file that has data blocks, not only a tail."""
    first = index.details[number]
    return index.words[first : first - (-index.sizes[number] // block_size)]


def _stored_length(words: array[int]) -> int:
    return sum(word & LENGTH for word in words)


def _ranges(layer: int, extents: list[tuple[int, int]], position: int) -> list[Range]:
    """Merge extents that touch, and place what comes out one after the other from `position` on.

    A long range keeps its position modulo the alignment, so that it can be cloned.
    """
    merged: list[list[int]] = []
    for start, length in sorted(extents):
        if merged and merged[-1][0] + merged[-1][1] == start:
            merged[-1][1] += length
        else:
            merged.append([start, length])
    ranges = []
    for start, length in merged:
        if length >= _ALIGN_FROM:
            position += (start - position) % ALIGNMENT
        ranges.append(Range(layer, start, length, position))
        position += length
    return ranges


def _same_bytes(one: Pack, one_at: int, other: Pack, other_at: int, length: int) -> bool:
    """Whether two files whose block words agree have the same stored bytes."""
    if one is other and one_at == other_at:  # one layer twice in an image
        return True
    buffers = [memoryview(bytearray(min(length, _COMPARE))) for _ in range(2)]
    while length:
        size = min(length, _COMPARE)
        one.read(one_at, buffers[0][:size])
        other.read(other_at, buffers[1][:size])
        if buffers[0][:size] != buffers[1][:size]:
            return False
        one_at, other_at, length = one_at + size, other_at + size, length - size
    return True
