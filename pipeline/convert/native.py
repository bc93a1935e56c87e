"""The ``native`` converter: stitch the .sqsh out of layer packs, without unpacking anything.

A layer is packed once, under its diff_id: a layer whose pack is in the cache is not read again, so that a
rebuild costs what changed. The diff_id is what the image's config states; the scanner saw the blob that the
manifest names. So a blob that no conversion has compared with its diff_id is read and compared, without being
packed again. It gives the same tree as ``mksquashfs``.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from pipeline.config.types import ConvertOptions
from pipeline.convert.interface import Converted
from pipeline.convert.packing import Packing, codec_of, pack_cache
from pipeline.convert.tree import (
    NODE,
    require_allowed,
    require_entries,
)
from pipeline.errors import FormatError, ToolError, VerificationError
from pipeline.oci.entry import DEFAULT_LIMITS, Entry, EntryKind, Limits
from pipeline.oci.merge import merge
from pipeline.oci.rootfs import created_seconds, enroot_rootfs
from pipeline.oci.source import ImageSource
from pipeline.oci.tree import Tree
from pipeline.progress import SILENT, Meter
from pipeline.squashfs.pack import FORMAT_VERSION, Pack, PackDamaged
from pipeline.squashfs.packindex import PackIndex
from pipeline.squashfs.proof import ReadBack, read_back
from pipeline.squashfs.ranges import of_layers
from pipeline.squashfs.stitch import Stitched, StitchOptions, stitch
from pipeline.system.disk import cannot_write
from pipeline.system.memory import require_memory

log = structlog.get_logger()

_ENTRY = 500  # bytes that an entry takes, and what the writer of inodes needs of it
_KINDS = (EntryKind.FILE, *EntryKind)  # by number; there is no kind 0


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
        packing=Packing(
            source=source,
            options=options,
            codec=codec_of(options),
            cache=packs,
            limits=limits,
            meter=meter,
        )
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
            job.packing.cache.discard(error)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Conversion:
    """One attempt to make the file; a damaged pack ends it."""

    packing: Packing

    def run(self, output: Path) -> Converted:
        packing = self.packing
        config, options, limits = packing.source.config(), packing.options, packing.limits
        with contextlib.ExitStack() as opened, _no_cycle_collection():
            tally = packing.tally()
            packs = packing.packs(opened, tally, output)
            packing.compare_the_rest(tally)
            names = [pack.index.paths for pack in packs]
            count = sum(map(len, names))
            require_entries(count, 0, limits)  # before they are looked at one by one
            require_entries(count, sum(len(path) for paths in names for path in paths), limits)
            require_memory(count * (NODE + _ENTRY))
            merged = merge([entries(pack.index) for pack in packs])
            tree = enroot_rootfs(
                merged, config, keep_owners=options.keep_owners, keep_xattrs=options.keep_xattrs
            )
            del merged
            require_allowed(tree, limits)
            packing.meter.total(sum(pack.data_size for pack in packs))
            stitched = self._write(tree, packs, output, created_seconds(config.created))
            packing.meter.total(stitched.size)
            read = _read_back(output, packs, stitched, packing.meter)
        versions = {"native": str(FORMAT_VERSION), **packing.codec.versions()}
        named = [(key, pack.data_size) for key, pack in zip(packing.keys(), packs, strict=True)]
        return Converted(
            tree=tree,
            versions=versions,
            sha256=read.sha256,
            size=stitched.size,
            packed=sum(packing.packed),
            ranges=of_layers(stitched.size, named, stitched.ranges),
            read=read,
        )

    def _write(self, tree: Tree, packs: Sequence[Pack], output: Path, mkfs_time: int) -> Stitched:
        packing = self.packing
        options = StitchOptions(
            codec=packing.codec, block_size=packing.options.block_size, mkfs_time=mkfs_time
        )
        try:
            with _created(output) as target:
                return stitch(tree, packs, target, options, on_bytes=packing.meter.advance)
        except OSError as error:
            raise cannot_write(error, output, hint="free space there or choose another --output") from error


def _read_back(output: Path, packs: Sequence[Pack], stitched: Stitched, meter: Meter) -> ReadBack:
    try:
        return read_back(output, packs, stitched.ranges, on_bytes=meter.advance)
    except (FormatError, OSError) as error:
        if isinstance(error, PackDamaged):
            raise
        raise VerificationError(
            f"{output.name} cannot be read back from the disk: {error}",
            hint="check the disk of its folder, or choose another --output",
        ) from error


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
