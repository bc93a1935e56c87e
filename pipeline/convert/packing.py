"""From layers to packs: what the ``native`` converter stitches an image from.

A layer whose pack is in the cache is not packed again. A pack stands for a blob only when a conversion has
read that blob and compared both digests; a blob for which that is not known is read and compared.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pipeline.config.types import ConvertOptions
from pipeline.convert.from_store import StoredLayers
from pipeline.convert.tree import RatioGuard, Seen, open_entries, require_layer, worker_count
from pipeline.errors import FormatError, LimitError
from pipeline.oci.entry import HOLES, Entry, Limits
from pipeline.oci.layer import Content
from pipeline.oci.manifest import Descriptor
from pipeline.oci.source import ImageSource
from pipeline.progress import Task
from pipeline.squashfs.cache import Compared, PackCache, Pair, pack_key
from pipeline.squashfs.codecs import DEFAULT_GZIP_LEVEL, Codec
from pipeline.squashfs.compressors import JOB_SIZE, Compressors
from pipeline.squashfs.pack import Pack, PackDamaged
from pipeline.squashfs.packwriter import PackWriter
from pipeline.squashfs.stored import NotHeld, SourceFailed
from pipeline.squashfs.superblock import Compressor
from pipeline.system.log import log
from pipeline.system.parallel import CancelToken, run_all
from pipeline.system.scratch import THE_RESULT, SpaceRequirement, require_space

_FOLDER = "packs"
_IN_FLIGHT = 96 << 20  # plain bytes between reading and writing, all layers together


def codec_of(options: ConvertOptions) -> Codec:
    """The codec that the options ask for, with mksquashfs' own level where they name none."""
    compressor = Compressor[options.compressor.upper()]
    levels = {Compressor.ZSTD: options.zstd_level, Compressor.GZIP: DEFAULT_GZIP_LEVEL}
    return Codec(compressor=compressor, level=levels.get(compressor, 0))


def pack_cache(cache: Path) -> PackCache:
    """The cache of layer packs below the folder `cache`; a damaged pack is logged as a warning."""
    return PackCache(cache / _FOLDER, on_damage=_report)


_Result = TypeVar("_Result")


def until_sound(packing: Packing, attempt: Callable[[], _Result]) -> _Result:
    """What `attempt` returns, which is repeated when a pack or a release cannot be used.

    A damaged pack is made again, each once: then it is the disk or the memory. A release that fails is left
    out. A layer of which the releases have not all is read; so are all that came from releases before another
    error is believed.
    """
    discarded: set[Path] = set()
    while True:
        try:
            return attempt()
        except PackDamaged as error:  # noqa: PERF203 - a few rounds
            if error.path in discarded:
                raise
            discarded.add(error.path)
            packing.cache.discard(error)
        except SourceFailed as error:
            if packing.stored is None:
                raise
            packing.stored.leave_out(error)
        except NotHeld as error:
            (packing.lacking if error.key in packing.every else packing.every).add(error.key)
        except LimitError:
            raise
        except FormatError:
            if packing.lacking >= packing.of_releases:
                raise
            packing.lacking.update(packing.of_releases)


def _report(error: PackDamaged) -> None:
    log.warning("a layer pack is damaged and will be made again", why=error.headline)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """The packs of one image. `cancel` can be set from outside, which ends the work with StoppedError."""

    source: ImageSource
    options: ConvertOptions
    codec: Codec
    cache: PackCache
    limits: Limits
    task: Task
    cancel: CancelToken = field(default_factory=CancelToken)
    stored: StoredLayers | None = None  # releases that have packs
    of_releases: set[str] = field(default_factory=set)  # keys of which a release was a source
    every: set[str] = field(default_factory=set)  # keys of which one release has not all that is needed
    lacking: set[str] = field(default_factory=set)  # and those of which all releases together have not
    compared: dict[Pair, Compared] = field(default_factory=dict)  # in this run, if the cache cannot note them
    packed: list[int] = field(default_factory=list)  # stored bytes of layers that got a pack
    read: list[int] = field(
        default_factory=list
    )  # stored bytes of layers that were read, for whatever reason

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

    def _known(self, pair: Pair) -> Compared | None:
        """What comparing the blob with the diff_id gave: here, or for a publisher of the store."""
        found = self.compared.get(pair) or self.cache.compared(pair)
        return found or (self.stored.compared(pair) if self.stored else None)

    def all_compared(self) -> list[tuple[Pair, Compared]]:
        """The layers of the image, base first, with what comparing them gave; without those not compared."""
        pairs = [self._pair(index) for index in range(len(self.source.manifest().layers))]
        return [(pair, found) for pair in pairs if (found := self._known(pair)) is not None]

    def tally(self) -> RatioGuard:
        """What all layers come to, with those that were compared before: they are not read again."""
        pairs = self._pairs()
        tally = RatioGuard(sum(pair.size for pair in pairs), self.limits)
        for pair in pairs:
            if found := self._known(pair):
                require_layer(found.unpacked, pair.size, self.limits)
                tally.add(found.unpacked + found.holes // HOLES)
        return tally

    def compare_the_rest(self, tally: RatioGuard) -> None:
        """Read the blobs that were never compared with their diff_ids; nothing is packed."""
        missing = [index for pair, index in self._pairs().items() if self._known(pair) is None]
        if not missing:
            return
        stored = self.source.manifest().layers
        missing.sort(key=lambda index: -stored[index].size)
        log.info("comparing layers that have packs with their diff_ids", layers=len(missing))
        self.task.total(sum(stored[index].size for index in missing))
        ahead = len(missing) < worker_count()

        def compare(index: int, cancel: CancelToken) -> None:
            with self._members(index, cancel, tally, background=ahead) as members:
                for _ in members:
                    pass

        run_all(
            [functools.partial(compare, index) for index in missing],
            workers=worker_count(),
            cancel=self.cancel,
        )

    def packs(self, opened: contextlib.ExitStack, tally: RatioGuard, output: Path | None) -> list[Pack]:
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
                pack = self.cache.open(key) or self._from_store(key, output)
                if pack is not None:
                    found[key] = opened.enter_context(pack)
                    if pack.index.header.get("diff_id") != str(diff_ids[wanted[key]]):
                        raise pack.damaged("it is another layer's", 0)
                    del wanted[key]
            if wanted:  # also what was trimmed since it was packed
                by_size = sorted(wanted.items(), key=lambda item: -layers[item[1]].size)
                log.info("packing layers", missing=len(wanted), there=len(found))
                self._say_other_codec([str(diff_ids[index]) for index in wanted.values()])
                self._require_space([layers[index] for _, index in by_size], found.values(), output)
                self.task.total(sum(layers[index].size for _, index in by_size))
                self._pack_layers(by_size, tally)
        return [found[key] for key in keys]

    def _from_store(self, key: str, output: Path | None) -> Pack | None:
        if self.stored is None or key in self.lacking:
            return None
        scratch = self.cache.folder.parent if output is None else output.parent
        xattrs, every = self.options.keep_xattrs, key in self.every
        found = self.stored.open(key, self.keys(), xattrs=xattrs, scratch=scratch, every=every)
        if found is not None:
            self.of_releases.add(key)
        return found

    def _say_other_codec(self, diff_ids: Sequence[str]) -> None:
        sentence = self.stored.other_codec(diff_ids, self.codec.versions()) if self.stored else ""
        if sentence:
            log.info(sentence)

    def _require_space(
        self, missing: Sequence[Descriptor], found: Iterable[Pack], output: Path | None
    ) -> None:
        """Look before the work: a pack is about as large as its layer is when that is compressed."""
        packs = sum(layer.size // (2 if layer.compression == "none" else 1) for layer in missing)
        known = sum(pack.data_size for pack in found)
        needs = [SpaceRequirement(folder=self.cache.folder, size=packs, purpose="layer packs")]
        if output is not None:
            needs.append(SpaceRequirement(folder=output.parent, size=packs + known, purpose=THE_RESULT))
        require_space(needs)

    def _pack_layers(self, layers: Sequence[tuple[str, int]], tally: RatioGuard) -> None:
        """Pack these layers by key and number, several at once, the longest first; compress on all cores."""
        at_once = min(worker_count(), len(layers))
        in_flight = max(4, _IN_FLIGHT // at_once // max(self.options.block_size, JOB_SIZE))
        with Compressors(self.codec) as compressors:
            tasks = [
                functools.partial(self._pack_layer, index, key, compressors, in_flight, tally)
                for key, index in layers
            ]
            run_all(tasks, workers=at_once, cancel=self.cancel)

    def _pack_layer(
        self,
        index: int,
        key: str,
        compressors: Compressors,
        in_flight: int,
        tally: RatioGuard,
        cancel: CancelToken,
    ) -> None:
        """Read one layer to its end and write its pack."""
        block_size = self.options.block_size
        header = {"block_size": block_size, "diff_id": str(self.source.config().diff_ids[index])}
        with self.cache.writing(key) as handle:
            writer = PackWriter(
                handle.write, compressors, block_size=block_size, header=header, in_flight=in_flight
            )
            with self._members(index, cancel, tally, background=True) as members:
                for entry, content in members:
                    writer.add(entry, content.view)
            made = writer.finish()
            handle.check(made, self.codec.compressor, workers=worker_count(), cancel=cancel)
            handle.complete(made)
        self.packed.append(self.source.manifest().layers[index].size)

    @contextlib.contextmanager
    def _members(
        self, index: int, cancel: CancelToken, tally: RatioGuard, *, background: bool
    ) -> Iterator[Iterator[tuple[Entry, Content]]]:
        """What is in a layer, to be read to its end: then it is noted that its blob has its diff_id."""
        pair, seen = self._pair(index), Seen()
        counted = self._known(pair) is not None
        with open_entries(
            self.source,
            index,
            cancel=cancel,
            task=self.task,
            background=background,
            limits=self.limits,
            tally=None if counted else tally,
            seen=seen,
        ) as members:
            yield members
        found = Compared(unpacked=seen.unpacked, holes=seen.holes)
        self.compared[pair] = found
        self.read.append(pair.size)
        self.cache.note_compared(pair, found)
