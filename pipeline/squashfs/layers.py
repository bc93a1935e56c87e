"""The attachment ``layers`` of a release: what its .sqsh has of each layer, so that it can be used as a pack.

    magic, length of the head
    head      JSON: {"schema": 1, "size": bytes of the .sqsh, "layers": [[pack key, bytes of the section], …]}
    sections  one for each pack, in the order of the head; each can be read alone

A section is a pack's index, with where the content of each file lies in the .sqsh: blocks by their position,
tails by fragment and offset. A file whose content is stored once, as another file's, lies where that one is.
It is as readable as the .sqsh: of an entry that the tree does not show only path, kind, mode, owner, time and
size are left, and of a fragment with such a tail only the size. Whoever needs more needs another source.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from pipeline.errors import FormatError
from pipeline.squashfs.blocks import LENGTH
from pipeline.squashfs.packindex import DIGEST_SIZE, PackIndex

SCHEMA = 1
MOST_BYTES = 256 << 20  # of the attachment
_MAGIC = b"sqshlyrs"
_MOST_LAYERS = 4096
_LARGEST = 1 << 62


@dataclass(slots=True, kw_only=True)
class LayerIndex(PackIndex):
    """What a .sqsh has of one pack. `header` has `data_size`, that of the pack, and `keeps_xattrs`.

    `positions` and `offsets` are those of shown files with content: where blocks begin in the .sqsh, with 0
    for the offset; or the number of a fragment of the .sqsh in `held_positions` and `held_words`, with the
    offset in it. `copied` has for each fragment of the pack one more than its number there if it was copied,
    else 0.
    """

    COLUMNS: ClassVar[tuple[tuple[str, str], ...]] = (
        *PackIndex.COLUMNS,
        ("shown", "B"),
        ("positions", "Q"),
        ("offsets", "I"),
        ("copied", "I"),
        ("held_positions", "Q"),
        ("held_words", "I"),
    )
    PER_ENTRY: ClassVar[tuple[str, ...]] = (*PackIndex.PER_ENTRY, "shown", "positions", "offsets")
    GROUPS: ClassVar[tuple[tuple[str, ...], ...]] = (
        *PackIndex.GROUPS,
        ("fragment_sizes", "copied"),
        ("held_positions", "held_words"),
    )
    LARGEST: ClassVar[int] = 1 << 30
    positions: array[int] = field(default_factory=lambda: array("Q"))
    offsets: array[int] = field(default_factory=lambda: array("I"))
    copied: array[int] = field(default_factory=lambda: array("I"))
    held_positions: array[int] = field(default_factory=lambda: array("Q"))
    held_words: array[int] = field(default_factory=lambda: array("I"))

    @property
    def data_size(self) -> int:
        return int(self.header["data_size"])

    def visible(self) -> array[int]:
        return self.shown

    def _check_pieces(self) -> None:
        """Pieces do not overlap, and lie inside the data; of others nothing is there."""
        size, keeps, end = self.header["data_size"], self.header["keeps_xattrs"], 0
        if type(size) is not int or not 0 <= size <= _LARGEST or type(keeps) is not bool:
            raise ValueError("its head is not possible")
        if max(self.shown, default=0) > 1:
            raise ValueError("an entry is neither shown nor hidden")
        for position, length, _ in self.pieces():
            if position < end:
                raise ValueError("two of its blocks overlap")
            end = position + length
        if end > size:
            raise ValueError("a block lies outside the data")
        for word, position, checksum in zip(
            self.fragment_words, self.fragment_positions, self.fragment_sums, strict=True
        ):
            if not word and (position or checksum):
                raise ValueError("there is something of a fragment that is not shown")
        for number in (number for number, shown in enumerate(self.shown) if not shown):
            named = any(number in of for of in (self.targets, self.devices, self.xattrs))
            if named or self.checksums[number] or any(self.digest(number)):
                raise ValueError("there is something of an entry that is not shown")

    def check_file(self, size: int) -> None:
        """Raise ValueError or LookupError unless all that it names lies in a file of `size` bytes."""
        block_size, words = self.header["block_size"], self.words
        for entry, (length, position, shown) in enumerate(
            zip(self.sizes, self.positions, self.shown, strict=True)
        ):
            if not length or not shown:
                if position or self.offsets[entry]:
                    raise ValueError("there is content of a file that has none")
            elif length >= block_size:
                first = self.details[entry]
                stored = sum(word & LENGTH for word in words[first : first - (-length // block_size)])
                if position + stored > size:
                    raise ValueError("a file lies outside the .sqsh")
            elif self.offsets[entry] + length > block_size or not self.held_words[position]:
                raise ValueError("the content of a file is not in its fragment")
        for position, word in zip(self.held_positions, self.held_words, strict=True):
            if word >> 25 or word & LENGTH > block_size or position + (word & LENGTH) > size:
                raise ValueError("a fragment lies outside the .sqsh")
        for number, held in enumerate(self.copied):
            if held and self.held_words[held - 1] != self.fragment_words[number]:
                raise ValueError("a fragment was not copied as it is")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Where the content of one pack went: by entry as an inode stores it, and the fragments copied whole.

    `fragments` are those of the .sqsh, position and word; `copied` has for each fragment of the pack one more
    than its number among them, or 0; `covered`, how many of its bytes belong to files that the tree shows.
    `shown` is 1 for each entry that the tree shows.
    """

    shown: bytearray
    places: Sequence[int]
    offsets: Sequence[int]
    copied: Sequence[int]
    covered: Sequence[int]
    fragments: Sequence[tuple[int, int]]


def layer_index(index: PackIndex, placed: Placed, *, data_size: int, xattrs: bool) -> LayerIndex:
    """What may be published of `index` beside the .sqsh; `xattrs`: whether that has extended attributes."""
    shown = placed.shown
    facts = ("block_size", "diff_id", "verified")
    head = {str(name): index.header[name] for name in facts if name in index.header}
    head |= {"data_size": data_size, "keeps_xattrs": xattrs}
    made = LayerIndex(header=head, paths=index.paths, kinds=index.kinds)
    for name in ("modes", "uids", "gids", "mtimes", "sizes", "fragment_sizes"):
        setattr(made, name, getattr(index, name))
    made.shown = array("B", shown)
    for name in ("checksums", "places", "details"):
        setattr(made, name, getattr(index, name)[:])
    made.digests = index.digests[:]
    for number in (number for number, one in enumerate(shown) if not one):
        made.checksums[number] = made.places[number] = made.details[number] = 0
        made.digests[number * DIGEST_SIZE : (number + 1) * DIGEST_SIZE] = bytes(DIGEST_SIZE)
    made.targets = {number: target for number, target in index.targets.items() if shown[number]}
    made.devices = {number: device for number, device in index.devices.items() if shown[number]}
    if xattrs:
        made.xattrs = {number: pairs for number, pairs in index.xattrs.items() if shown[number]}
    _add_content(made, index, placed)
    _add_fragments(made, index, placed)
    return made


def _add_content(made: LayerIndex, index: PackIndex, placed: Placed) -> None:
    """Where the content of shown files lies, with block words of those that have blocks."""
    block_size, count = index.header["block_size"], len(index)
    made.positions, made.offsets = array("Q", bytes(8 * count)), array("I", bytes(4 * count))
    numbers: dict[int, int] = {}
    for number, (size, shown) in enumerate(zip(index.sizes, placed.shown, strict=True)):
        if not size or not shown:
            continue
        place = placed.places[number]
        if size >= block_size:
            first, made.positions[number] = index.details[number], place
            made.details[number] = len(made.words)
            made.words += index.words[first : first - (-size // block_size)]
            made.word_sums += index.word_sums[first : first - (-size // block_size)]
        else:
            made.positions[number] = numbers.setdefault(place, len(numbers))
            made.offsets[number] = placed.offsets[number]
    for place in numbers:
        position, word = placed.fragments[place]
        made.held_positions.append(position)
        made.held_words.append(word)
    made.copied = array("I", [numbers[held - 1] + 1 if held else 0 for held in placed.copied])


def _add_fragments(made: LayerIndex, index: PackIndex, placed: Placed) -> None:
    """The fragments of the pack: of one with a tail that is not shown, no more than its size."""
    known = [have == size for have, size in zip(placed.covered, index.fragment_sizes, strict=True)]
    for name in ("fragment_positions", "fragment_words", "fragment_sums"):
        column: array[int] = getattr(index, name)
        kept = array(column.typecode, [one if keep else 0 for one, keep in zip(column, known, strict=True)])
        setattr(made, name, kept)


def encode_layers(size: int, layers: Mapping[str, LayerIndex]) -> bytes | None:
    """The attachment of a .sqsh of `size` bytes, by pack key; None when it would be too large."""
    sections = {key: layer.encode() for key, layer in layers.items()}
    named = [[key, len(section)] for key, section in sections.items()]
    head = json.dumps({"schema": SCHEMA, "size": size, "layers": named}, separators=(",", ":")).encode()
    stored = b"".join([_MAGIC, len(head).to_bytes(8, "little"), head, *sections.values()])
    return stored if len(stored) <= MOST_BYTES and len(named) <= _MOST_LAYERS else None


def read_layer(stored: bytes, key: str, *, size: int) -> LayerIndex | None:
    """The section of one pack in the attachment of a .sqsh of `size` bytes; None when it has none.

    Raises FormatError when a number in it is not possible.
    """
    return next(_read(stored, size, key), None)


def read_layers(stored: bytes, *, size: int) -> list[LayerIndex]:
    """All sections in the attachment of a .sqsh of `size` bytes. Raises FormatError as `read_layer` does."""
    return list(_read(stored, size, None))


def _read(stored: bytes, size: int, key: str | None) -> Iterator[LayerIndex]:
    """The section of the pack `key`, or of each pack."""
    try:
        at = int.from_bytes(stored[8:16], "little") + 16
        if stored[:8] != _MAGIC or not 16 < at <= len(stored):
            raise ValueError("its head is cut short")
        head = json.loads(stored[16:at])
        if head["schema"] != SCHEMA or head["size"] != size or len(head["layers"]) > _MOST_LAYERS:
            raise ValueError("it is of another file or schema")
        for name, length in head["layers"]:
            if type(length) is not int or not 0 < length <= len(stored) - at:
                raise ValueError("a section is cut short")
            if key in (None, name):
                found = LayerIndex.decode(stored[at : at + length])
                found.check_file(size)
                yield found
            at += length
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise FormatError(f"the layers of a .sqsh are damaged: {error}") from error
