"""The ``native`` converter: stitch the .sqsh out of layer packs, without unpacking anything.

A layer is packed once, under its diff_id: a layer whose pack is in the cache is not read again, so that a
rebuild costs what changed. The diff_id is what the image's config states; the scanner saw the blob that the
manifest names. So a blob that no conversion has compared with its diff_id is read and compared, without being
packed again. It gives the same tree as ``mksquashfs``.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from pipeline.config.types import ConvertOptions
from pipeline.convert.interface import Converted
from pipeline.convert.tree import (
    NODE,
    Seen,
    Tally,
    open_entries,
    require_allowed,
    require_entries,
    require_layer,
    worker_count,
)
from pipeline.errors import ToolError
from pipeline.oci.entry import DEFAULT_LIMITS, HOLES, Entry, EntryKind, Limits
from pipeline.oci.layer import Content
from pipeline.oci.manifest import Descriptor
from pipeline.oci.merge import merge
from pipeline.oci.rootfs import created_seconds, enroot_rootfs
from pipeline.oci.source import ImageSource
from pipeline.oci.tree import Tree
from pipeline.progress import SILENT, Meter
from pipeline.squashfs.cache import Compared, PackCache, Pair, pack_key
from pipeline.squashfs.codecs import DEFAULT_GZIP_LEVEL, Codec
from pipeline.squashfs.compressors import JOB_SIZE, Compressors
from pipeline.squashfs.pack import FORMAT_VERSION, Pack, PackDamaged
from pipeline.squashfs.packindex import PackIndex
from pipeline.squashfs.packwriter import PackWriter
from pipeline.squashfs.stitch import Stitched, StitchOptions, stitch
from pipeline.squashfs.superblock import Compressor
from pipeline.system.disk import cannot_write
from pipeline.system.memory import require_memory
from pipeline.system.parallel import Halt, work
from pipeline.system.scratch import THE_RESULT, Need, require_space

log = structlog.get_logger()

_FOLDER = "packs"
_IN_FLIGHT = 96 << 20  # plain bytes between reading and writing, all layers together
_ENTRY = 500  # bytes that an entry takes, and what the writer of inodes needs of it
_KINDS = (EntryKind.FILE, *EntryKind)  # by number; there is no kind 0


def codec_of(options: ConvertOptions) -> Codec:
    """The codec that the options ask for, with mksquashfs' own level where they name none."""
    compressor = Compressor[options.compressor.upper()]
    levels = {Compressor.ZSTD: options.zstd_level, Compressor.GZIP: DEFAULT_GZIP_LEVEL}
    return Codec(compressor=compressor, level=levels.get(compressor, 0))


def pack_cache(cache: Path) -> PackCache:
    """Where the packs are within the cache folder."""
    return PackCache(cache / _FOLDER, on_damage=_tell)


def _tell(error: PackDamaged) -> None:
    log.warning("a layer pack is damaged and will be made again", why=error.headline)


def convert_native(
    source: ImageSource,
    options: ConvertOptions,
    *,
    output: Path,
    cache: Path,
    scratch: Path | None = None,  # noqa: ARG001 - a converter is given one; nothing is unpacked here
    limits: Limits = DEFAULT_LIMITS,
    meter: Meter = SILENT,
) -> Converted:
    """Write the file ``output``, on disk when this returns; on an exception it is gone.

    Layers without a pack in ``cache`` are read and packed, several at once; of the others those are read
    whose blob was never compared with its diff_id. A pack that turns out to be damaged is made again. Raises
    ToolError (space, folders that cannot be written), RegistryError, FormatError.
    """
    packs = pack_cache(cache)
    job = _Conversion(
        source=source,
        options=options,
        codec=codec_of(options),
        cache=packs,
        limits=limits,
        meter=meter,
    )
    try:
        packs.refuse_others()
        packs.remove_leftovers()
        return _until_sound(job, output)
    except OSError as error:
        _remove(output)
        where = error.filename or packs.folder
        raise ToolError(
            f"cannot use {where}: {error.strerror or error}", hint="set SQSHPIPE_CACHE to a folder of yours"
        ) from error
    except BaseException:
        _remove(output)
        raise


def _remove(output: Path) -> None:
    with contextlib.suppress(OSError):
        output.unlink()


def _until_sound(job: _Conversion, output: Path) -> Converted:
    """Convert; a damaged pack is made again. Each pack once: then it is the disk or the memory."""
    discarded: set[Path] = set()
    while True:
        try:
            return job.run(output)
        except PackDamaged as error:  # noqa: PERF203 - a few rounds
            if error.path in discarded:
                raise
            discarded.add(error.path)
            job.cache.discard(error)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Conversion:
    source: ImageSource
    options: ConvertOptions
    codec: Codec
    cache: PackCache
    limits: Limits
    meter: Meter
    compared: set[Pair] = field(default_factory=set)  # in this run, if they cannot be noted in the cache

    def run(self, output: Path) -> Converted:
        config, options = self.source.config(), self.options
        with contextlib.ExitStack() as opened, _no_cycle_collection():
            tally = self._tally()
            packs = self._packs(opened, output, tally)
            self._compare_the_rest(tally)
            names = [pack.index.paths for pack in packs]
            count = sum(map(len, names))
            require_entries(count, 0, self.limits)  # before they are looked at one by one
            require_entries(count, sum(len(path) for paths in names for path in paths), self.limits)
            require_memory(count * (NODE + _ENTRY))
            merged = merge([entries(pack.index) for pack in packs])
            tree = enroot_rootfs(
                merged, config, keep_owners=options.keep_owners, keep_xattrs=options.keep_xattrs
            )
            del merged
            require_allowed(tree, self.limits)
            self.meter.total(sum(pack.data_size for pack in packs))
            stitched = self._write(tree, packs, output, created_seconds(config.created))
        versions = {"native": str(FORMAT_VERSION), **self.codec.versions()}
        return Converted(tree=tree, versions=versions, sha256=stitched.sha256, size=stitched.size)

    def _pair(self, index: int) -> Pair:
        layer, diff_id = self.source.manifest().layers[index], self.source.config().diff_ids[index]
        return Pair(blob=str(layer.digest), size=layer.size, diff_id=str(diff_id))

    def _pairs(self) -> dict[Pair, int]:
        """Each layer once, with its number."""
        return {self._pair(index): index for index in reversed(range(len(self.source.manifest().layers)))}

    def _tally(self) -> Tally:
        """What all layers come to, with those that were compared before: they are not read again."""
        pairs = self._pairs()
        tally = Tally(sum(pair.size for pair in pairs), self.limits)
        for pair in pairs:
            if found := self.cache.compared(pair):
                require_layer(found.unpacked, pair.size, self.limits)
                tally.add(found.unpacked + found.holes // HOLES)
        return tally

    def _compare_the_rest(self, tally: Tally) -> None:
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

        work([functools.partial(compare, index) for index in missing], workers=worker_count())

    def _packs(self, opened: contextlib.ExitStack, output: Path, tally: Tally) -> list[Pack]:
        """One open pack for each layer; those that are missing are made first."""
        layers = self.source.manifest().layers
        diff_ids = self.source.config().diff_ids
        keys = [pack_key(str(diff_id), self.codec, self.options.block_size) for diff_id in diff_ids]
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

    def _require_space(self, missing: Sequence[Descriptor], found: Iterable[Pack], output: Path) -> None:
        """Look before the work: a pack is about as large as its layer is when that is compressed."""
        packs = sum(layer.size // (2 if layer.compression == "none" else 1) for layer in missing)
        known = sum(pack.data_size for pack in found)
        require_space(
            [
                Need(folder=self.cache.folder, size=packs, purpose="layer packs"),
                Need(folder=output.parent, size=packs + known, purpose=THE_RESULT),
            ]
        )

    def _pack_layers(self, layers: Sequence[tuple[str, int]], tally: Tally) -> None:
        """Pack these layers by key and number, several at once, the longest first; compress on all cores."""
        at_once = min(worker_count(), len(layers))
        in_flight = max(4, _IN_FLIGHT // at_once // max(self.options.block_size, JOB_SIZE))
        with Compressors(self.codec) as compressors:
            tasks = [
                functools.partial(self._pack_layer, index, key, compressors, in_flight, tally)
                for key, index in layers
            ]
            work(tasks, workers=at_once)

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
            handle.complete(writer.finish())

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

    def _write(self, tree: Tree, packs: Sequence[Pack], output: Path, mkfs_time: int) -> Stitched:
        options = StitchOptions(codec=self.codec, block_size=self.options.block_size, mkfs_time=mkfs_time)
        try:
            with _created(output) as target:
                return stitch(tree, packs, target, options, on_bytes=self.meter.advance)
        except OSError as error:
            raise cannot_write(error, output, hint="free space there or choose another --output") from error


@contextlib.contextmanager
def _no_cycle_collection() -> Iterator[None]:
    """A tree is up to a million objects without a cycle among them: looking for cycles takes a fifth of the
    time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def _created(output: Path) -> Iterator[int]:
    output.unlink(missing_ok=True)
    target = os.open(output, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        os.fchmod(target, 0o644)  # readable by all, whatever the umask
        yield target
    finally:
        os.close(target)


def entries(index: PackIndex) -> list[Entry]:
    """The layer's entries as they were read when it was packed."""
    nothing, zero, none = itertools.repeat(b""), itertools.repeat(0), itertools.repeat(())
    found = list(
        map(
            Entry,
            index.paths,
            map(_KINDS.__getitem__, index.kinds),
            index.modes,
            index.uids,
            index.gids,
            index.mtimes,
            index.sizes,
            nothing,
            zero,
            zero,
            none,
            index.checksums,
        )
    )
    for number, target in index.targets.items():
        found[number].target = target
    for number, (major, minor) in index.devices.items():
        found[number].major, found[number].minor = major, minor
    for number, xattrs in index.xattrs.items():
        found[number].xattrs = xattrs
    return found
