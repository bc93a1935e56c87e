"""A layer pack that is not there, put together from what .sqsh files have of it.

Files are used in place and read only. What one has is known from its `layers` (see layers); of several the
first that has a piece counts. A fragment that no file has, though all of its tails are somewhere, is
compressed again: the pack key names the version of the codec, so the same bytes come out, which a checksum
proves.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from isal import isal_zlib

from pipeline.errors import FormatError
from pipeline.squashfs.blocks import LENGTH, RAW
from pipeline.squashfs.codecs import Codec
from pipeline.squashfs.layers import LayerIndex
from pipeline.squashfs.pack import Pack, Place, Tail
from pipeline.squashfs.packindex import DIGEST_SIZE
from pipeline.squashfs.tails import TailReader
from pipeline.squashfs.writing import write_at
from pipeline.system.disk import is_full

_SAME = ("paths", "kinds", "modes", "uids", "gids", "mtimes", "sizes", "fragment_sizes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """An open .sqsh of a release; `name` is the release's, for people.

    Of one that lies on another machine `descriptor` is a file with holes: `bring` fetches these (position,
    length) of it, all at once. It raises SourceFailed.
    """

    name: str
    path: Path
    descriptor: int
    bring: Callable[[Held, Sequence[tuple[int, int]]], None] | None = None


class SourceFailed(FormatError):
    """A release whose bytes are not what is said of them, or cannot be read: it must be left out."""

    def __init__(self, held: Held, what: str) -> None:
        super().__init__(
            f"{held.name} cannot be used as a source of layers: {held.path}: {what}",
            hint="run sqshpipe store scrub, which marks what is damaged",
        )
        self.held = held


class NotHeld(FormatError):
    """No release has all that is needed of a layer."""

    def __init__(self, key: str) -> None:
        super().__init__("no release has all that is needed of a layer", hint="convert it again")
        self.key = key


@dataclass(frozen=True, slots=True)
class _Extent:
    """`length` bytes of the pack at `position` are those at `place` of the file open as `descriptor`."""

    position: int
    length: int
    descriptor: int
    place: int


class StoredPack(Pack):
    """The pack `key` as far as `sources` have it; used up when they are closed.

    What else is asked for raises NotHeld, a source that fails SourceFailed; nothing of a source is changed.
    """

    def __init__(self, key: str, sources: Sequence[tuple[Held, LayerIndex]], scratch: Path) -> None:
        """`sources` are at least one; what is compressed again is kept in a nameless file in `scratch`."""
        self.key = key
        self._scratch = scratch
        self.sources = [held for held, _ in sources]
        self._elsewhere = {held.descriptor: held for held in self.sources if held.bring is not None}
        self._layers = [layer for _, layer in sources]
        self._of_entry = array("H", bytes(2 * len(sources[0][1])))  # which source has it
        self._extents: list[_Extent] = []
        self._starts: list[int] = []
        self._made = -1
        self._made_size = 0
        super().__init__(self.sources[0].path, -1, self._union())
        self.index: LayerIndex
        self._find_extents()

    def _union(self) -> LayerIndex:
        """The first index, with what it lacks from the others."""
        index = self._layers[0]
        for number, other in enumerate(self._layers[1:], 1):
            same = all(getattr(other, name) == getattr(index, name) for name in _SAME)
            if not same or other.data_size != index.data_size:
                raise SourceFailed(self.sources[number], "it has another index of the same layer")
            missing = [
                entry for entry, (a, b) in enumerate(zip(index.shown, other.shown, strict=True)) if b > a
            ]
            for entry in missing:
                self._add(index, other, entry)
                self._of_entry[entry] = number
            for fragment, word in enumerate(index.fragment_words):
                if not word:
                    for name in ("fragment_words", "fragment_positions", "fragment_sums"):
                        getattr(index, name)[fragment] = getattr(other, name)[fragment]
        return index

    @staticmethod
    def _add(index: LayerIndex, other: LayerIndex, entry: int) -> None:
        for name in ("shown", "checksums", "places", "details", "positions", "offsets"):
            getattr(index, name)[entry] = getattr(other, name)[entry]
        where = slice(entry * DIGEST_SIZE, (entry + 1) * DIGEST_SIZE)
        index.digests[where] = other.digests[where]
        for named in ("targets", "devices", "xattrs"):
            if entry in getattr(other, named):
                getattr(index, named)[entry] = getattr(other, named)[entry]
        size, block_size = index.sizes[entry], index.header["block_size"]
        if size >= block_size:
            first = other.details[entry]
            index.details[entry] = len(index.words)
            index.words += other.words[first : first - (-size // block_size)]
            index.word_sums += other.word_sums[first : first - (-size // block_size)]

    def _find_extents(self) -> None:
        """Where each block and each copied fragment lies, in the order of the pack; neighbours as one."""
        index, block_size = self.index, self.index.header["block_size"]
        found: list[tuple[int, int, int, int]] = []
        for entry, size in enumerate(index.sizes):
            if size >= block_size and index.shown[entry]:
                first = index.details[entry]
                length = sum(word & LENGTH for word in index.words[first : first - (-size // block_size)])
                if length:
                    found.append((index.places[entry], length, self._of_entry[entry], index.positions[entry]))
        for fragment, word in enumerate(index.fragment_words):
            for number, layer in enumerate(self._layers):
                held = layer.copied[fragment]
                if held:
                    place = layer.held_positions[held - 1]
                    found.append((index.fragment_positions[fragment], word & LENGTH, number, place))
                    break
        joined: list[list[int]] = []
        for position, length, number, place in sorted(found):
            last = joined[-1] if joined else None
            if last and (last[0] + last[1], last[2], last[3] + last[1]) == (position, number, place):
                last[1] += length
            else:
                joined.append([position, length, number, place])
        self._set(
            [_Extent(at, size, self.sources[number].descriptor, place) for at, size, number, place in joined]
        )

    def _set(self, extents: list[_Extent]) -> None:
        self._extents = sorted(extents, key=lambda extent: extent.position)
        self._starts = [extent.position for extent in self._extents]

    def _at(self, position: int) -> _Extent | None:
        """What has the byte at `position`."""
        at = bisect_right(self._starts, position) - 1
        extent = self._extents[at] if at >= 0 else None
        return extent if extent and position < extent.position + extent.length else None

    def where(self, position: int, length: int) -> Iterator[Place]:
        for place in self._lies(position, length):
            self._bring([place])
            yield place

    def bring(self, extents: Sequence[tuple[int, int]], tails: Iterable[int]) -> None:
        if not self._elsewhere:
            return
        places = [place for extent in extents for place in self._lies(*extent)]
        self._bring([*places, *(_place(self._tail(number)) for number in tails)])

    def _bring(self, places: Sequence[Place]) -> None:
        """Fetch what lies on another machine, and is not here yet."""
        for descriptor, held in self._elsewhere.items():
            wanted = [(at, count) for one, at, count in places if one == descriptor]
            if wanted and held.bring is not None:
                held.bring(held, wanted)

    def _lies(self, position: int, length: int) -> Iterator[Place]:
        while length:
            extent = self._at(position)
            if extent is None:
                raise self.lacking()
            shift = position - extent.position
            count = min(length, extent.length - shift)
            yield extent.descriptor, extent.place + shift, count
            position, length = position + count, length - count

    def tail(self, number: int) -> Tail:
        found = self._tail(number)
        self._bring([_place(found)])
        return found

    def _tail(self, number: int) -> Tail:
        source, index = self._of_entry[number], self.index
        layer, held = self._layers[source], index.positions[number]
        position, word = layer.held_positions[held], layer.held_words[held]
        # Fragments of several files have the same numbers.
        return Tail(
            held * len(self.sources) + source,
            self.sources[source].descriptor,
            position,
            word,
            index.offsets[number],
        )

    def damaged(self, what: str, position: int) -> FormatError:
        extent = self._at(position)
        held = [held for held in self.sources if extent is None or held.descriptor == extent.descriptor]
        return SourceFailed(held[0], what) if held else self.lacking()

    def unreadable(self, error: OSError, position: int) -> Exception:
        return error if is_full(error) else self.damaged(error.strerror or str(error), position)

    def tail_damaged(self, number: int, what: str) -> FormatError:
        return SourceFailed(self.sources[self._of_entry[number]], what)

    def lacking(self) -> FormatError:
        return NotHeld(self.key)

    def held_bytes(self, position: int, length: int) -> Iterator[tuple[str, int]]:
        """Which release has how many of these bytes of the data, or that they were compressed again."""
        names = {held.descriptor: held.name for held in self.sources}
        for descriptor, _, count in self._lies(position, length):
            yield names.get(descriptor, "compressed again"), count

    def provide(self, extents: Sequence[tuple[int, int]], codec: Codec) -> None:
        """Compress again, out of tails, what no source has of these extents; NotHeld if that cannot be."""
        fragments = {position: number for number, position in enumerate(self.index.fragment_positions)}
        missing = []
        for begin, length in extents:
            position = begin
            while position < begin + length:
                extent = self._at(position)
                if extent is not None:
                    position = extent.position + extent.length
                    continue
                fragment = fragments.get(position)
                if fragment is None or not self.index.fragment_words[fragment]:
                    raise self.lacking()
                missing.append(fragment)
                position += self.index.fragment_words[fragment] & LENGTH
        if missing:
            self._make(missing, codec)

    def _make(self, fragments: Sequence[int], codec: Codec) -> None:
        index, block_size = self.index, self.index.header["block_size"]
        tails: dict[int, dict[int, int]] = {fragment: {} for fragment in fragments}
        for entry, (size, shown) in enumerate(zip(index.sizes, index.shown, strict=True)):
            if shown and 0 < size < block_size and index.places[entry] in tails:
                tails[index.places[entry]][index.details[entry]] = entry
        self.bring((), [entry for of in tails.values() for entry in of.values()])
        if self._made < 0:
            with tempfile.TemporaryFile(dir=self._scratch) as file:
                self._made = os.dup(file.fileno())
        reader, compress, made = TailReader([self], codec.compressor), codec.make_compress(), []
        for fragment in fragments:
            plain = b"".join(reader.read(0, entry) for _, entry in sorted(tails[fragment].items()))
            stored = compress(plain)
            word = len(stored) if len(stored) < len(plain) else len(plain) | RAW
            stored = stored if len(stored) < len(plain) else plain
            if (word, isal_zlib.crc32(stored)) != (
                index.fragment_words[fragment],
                index.fragment_sums[fragment],
            ):
                raise self.lacking()
            write_at(self._made, [stored], self._made_size)
            made.append(_Extent(index.fragment_positions[fragment], len(stored), self._made, self._made_size))
            self._made_size += len(stored)
        self._set([*self._extents, *made])

    def close(self) -> None:
        if self._made >= 0:
            os.close(self._made)
            self._made = -1


def _place(tail: Tail) -> Place:
    return tail.descriptor, tail.position, tail.word & LENGTH
