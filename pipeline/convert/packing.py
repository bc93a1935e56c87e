"""From layers to packs: what the ``native`` converter stitches an image from.

A layer whose pack is in the cache is not packed again. A pack stands for a blob only when a conversion has
read that blob and compared both digests; a blob for which that is not known is read and compared.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from pipeline.config.types import ConvertOptions
from pipeline.convert.tree import Seen, Tally, open_entries, require_layer, worker_count
from pipeline.oci.entry import HOLES, Entry, Limits
from pipeline.oci.layer import Content
from pipeline.oci.manifest import Descriptor
from pipeline.oci.source import ImageSource
from pipeline.progress import Meter
from pipeline.squashfs.cache import Compared, PackCache, Pair, pack_key
from pipeline.squashfs.codecs import DEFAULT_GZIP_LEVEL, Codec
from pipeline.squashfs.compressors import JOB_SIZE, Compressors
from pipeline.squashfs.pack import Pack, PackDamaged
from pipeline.squashfs.packwriter import PackWriter
from pipeline.squashfs.superblock import Compressor
from pipeline.system.parallel import Halt, work
from pipeline.system.scratch import THE_RESULT, Need, require_space

log = structlog.get_logger()

_FOLDER = "packs"
_IN_FLIGHT = 96 << 20  # plain bytes between reading and writing, all layers together


def codec_of(options: ConvertOptions) -> Codec:
    """The codec that the options ask for, with mksquashfs' own level where they name none."""
    compressor = Compressor[options.compressor.upper()]
    levels = {Compressor.ZSTD: options.zstd_level, Compressor.GZIP: DEFAULT_GZIP_LEVEL}
    return Codec(compressor=compressor, level=levels.get(compressor, 0))


def pack_cache(cache: Path) -> PackCache:
    """Where the packs are within the cache folder."""
    return PackCache(cache / _FOLDER, on_damage=_report)


def _report(error: PackDamaged) -> None:
    log.warning("a layer pack is damaged and will be made again", why=error.headline)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """The packs of one image. `halt` can be set from outside, which ends the work with StoppedError."""

    source: ImageSource
    options: ConvertOptions
    codec: Codec
    cache: PackCache
    limits: Limits
    meter: Meter
    halt: Halt = field(default_factory=Halt)
    compared: set[Pair] = field(default_factory=set)  # in this run, if they cannot be noted in the cache
    packed: list[int] = field(default_factory=list)  # stored bytes of layers that got a pack

    def keys(self) -> list[str]:
        """The key of each layer's pack, base first; a layer that is there twice has its key twice."""
        diff_ids = self.source.config().diff_ids
        return [pack_key(str(diff_id), self.codec, self.options.block_size) for diff_id in diff_ids]

    def _pair(self, index: int) -> Pair:
        layer, diff_id = self.source.manifest().layers[index], self.source.config().diff_ids[index]
        return Pair(blob=str(layer.digest), size=layer.size, diff_id=str(diff_id))

    def _pairs(self) -> dict[Pair, int]:
        """Each layer once, with its number."""
        return {self._pair(index): index for index in reversed(range(len(self.source.manifest().layers)))}

    def tally(self) -> Tally:
        """What all layers come to, with those that were compared before: they are not read again."""
        pairs = self._pairs()
        tally = Tally(sum(pair.size for pair in pairs), self.limits)
        for pair in pairs:
            if found := self.cache.compared(pair):
                require_layer(found.unpacked, pair.size, self.limits)
                tally.add(found.unpacked + found.holes // HOLES)
        return tally

    def compare_the_rest(self, tally: Tally) -> None:
        """Read the blobs that were never compared with their diff_ids; nothing is packed."""
        missing = [
            index
            for pair, index in self._pairs().items()
            if pair not in self.compared and self.cache.compared(pair) is None
        ]
        if not missing:
            return
        stored = self.source.manifest().layers
        missing.sort(key=lambda index: -stored[index].size)
        log.info("comparing layers that have packs with their diff_ids", layers=len(missing))
        self.meter.total(sum(stored[index].size for index in missing))
        ahead = len(missing) < worker_count()

        def compare(index: int, halt: Halt) -> None:
            with self._members(index, halt, tally, background=ahead) as members:
                for _ in members:
                    pass

        work([functools.partial(compare, index) for index in missing], workers=worker_count(), halt=self.halt)

    def packs(self, opened: contextlib.ExitStack, tally: Tally, output: Path | None) -> list[Pack]:
        """One open pack for each layer; those that are missing are made first.

        `output` is where the image will be written: there must be room for it too. None: it is not known yet.
        """
        layers = self.source.manifest().layers
        diff_ids = self.source.config().diff_ids
        keys = self.keys()
        wanted = {key: index for index, key in reversed(list(enumerate(keys)))}  # a layer twice: one pack
        found: dict[str, Pack] = {}
        while wanted:
            for key in list(wanted):
                pack = self.cache.open(key)
                if pack is not None:
                    found[key] = opened.enter_context(pack)
                    if pack.index.header.get("diff_id") != str(diff_ids[wanted[key]]):
                        raise PackDamaged(pack.path, "it is another layer's")
                    del wanted[key]
            if wanted:  # also what was trimmed since it was packed
                by_size = sorted(wanted.items(), key=lambda item: -layers[item[1]].size)
                log.info("packing layers", missing=len(wanted), cached=len(found))
                self._require_space([layers[index] for _, index in by_size], found.values(), output)
                self.meter.total(sum(layers[index].size for _, index in by_size))
                self._pack_layers(by_size, tally)
        return [found[key] for key in keys]

    def _require_space(
        self, missing: Sequence[Descriptor], found: Iterable[Pack], output: Path | None
    ) -> None:
        """Look before the work: a pack is about as large as its layer is when that is compressed."""
        packs = sum(layer.size // (2 if layer.compression == "none" else 1) for layer in missing)
        known = sum(pack.data_size for pack in found)
        needs = [Need(folder=self.cache.folder, size=packs, purpose="layer packs")]
        if output is not None:
            needs.append(Need(folder=output.parent, size=packs + known, purpose=THE_RESULT))
        require_space(needs)

    def _pack_layers(self, layers: Sequence[tuple[str, int]], tally: Tally) -> None:
        """Pack these layers by key and number, several at once, the longest first; compress on all cores."""
        at_once = min(worker_count(), len(layers))
        in_flight = max(4, _IN_FLIGHT // at_once // max(self.options.block_size, JOB_SIZE))
        with Compressors(self.codec) as compressors:
            tasks = [
                functools.partial(self._pack_layer, index, key, compressors, in_flight, tally)
                for key, index in layers
            ]
            work(tasks, workers=at_once, halt=self.halt)

    def _pack_layer(
        self, index: int, key: str, compressors: Compressors, in_flight: int, tally: Tally, halt: Halt
    ) -> None:
        """Read one layer to its end and write its pack."""
        block_size = self.options.block_size
        header = {"block_size": block_size, "diff_id": str(self.source.config().diff_ids[index])}
        with self.cache.writing(key) as handle:
            writer = PackWriter(
                handle.write, compressors, block_size=block_size, header=header, in_flight=in_flight
            )
            with self._members(index, halt, tally, background=True) as members:
                for entry, content in members:
                    writer.add(entry, content.view)
            made = writer.finish()
            handle.check(made, self.codec.compressor, workers=worker_count(), halt=halt)
            handle.complete(made)
        self.packed.append(self.source.manifest().layers[index].size)

    @contextlib.contextmanager
    def _members(
        self, index: int, halt: Halt, tally: Tally, *, background: bool
    ) -> Iterator[Iterator[tuple[Entry, Content]]]:
        """What is in a layer, to be read to its end: then it is noted that its blob has its diff_id."""
        pair, seen = self._pair(index), Seen()
        counted = pair in self.compared or self.cache.compared(pair) is not None
        with open_entries(
            self.source,
            index,
            halt=halt,
            meter=self.meter,
            background=background,
            limits=self.limits,
            tally=None if counted else tally,
            seen=seen,
        ) as members:
            yield members
        self.compared.add(pair)
        self.cache.note_compared(pair, Compared(unpacked=seen.unpacked, holes=seen.holes))
