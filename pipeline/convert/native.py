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
from pathlib import Path

from pipeline.config.types import ConvertOptions
from pipeline.convert.from_store import StoredLayers
from pipeline.convert.interface import Converted
from pipeline.convert.packing import Packing, codec_of, pack_cache, until_sound
from pipeline.convert.tree import (
    NODE,
    require_allowed,
    require_entries,
)
from pipeline.errors import FormatError, ToolError, VerificationError
from pipeline.oci.entry import DEFAULT_LIMITS, WITHHELD, Entry, EntryKind, Limits
from pipeline.oci.merge import WithheldError, merge
from pipeline.oci.rootfs import created_seconds, enroot_rootfs
from pipeline.oci.source import ImageSource
from pipeline.oci.tree import Tree
from pipeline.progress import NO_TASK, Task
from pipeline.squashfs.layers import LayerIndex, encode_layers, layer_index
from pipeline.squashfs.pack import FORMAT_VERSION, Pack, PackDamaged
from pipeline.squashfs.packindex import PackIndex
from pipeline.squashfs.proof import ReadBack, read_back
from pipeline.squashfs.ranges import of_layers
from pipeline.squashfs.stitch import Stitched, StitchOptions, stitch
from pipeline.squashfs.stored import NotHeld, SourceFailed, StoredPack
from pipeline.system.disk import cannot_write
from pipeline.system.log import log
from pipeline.system.memory import require_memory

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
    task: Task = NO_TASK,
    stored: StoredLayers | None = None,
) -> Converted:
    """Write the file ``output``, on disk when this returns; on an exception it is gone.

    Layers without a pack in ``cache`` are read and packed, several at once; of the others those are read
    whose blob was never compared with its diff_id. What releases of ``stored`` have counts as a pack. A pack
    that turns out to be damaged is made again, a release that cannot be read is left out: the file has the
    same bytes whatever it came from. Raises ToolError (space, folders that cannot be written), RegistryError,
    FormatError.
    """
    packing = Packing(
        source=source,
        options=options,
        codec=codec_of(options),
        cache=pack_cache(cache),
        limits=limits,
        task=task,
        stored=stored,
    )
    try:
        packing.cache.refuse_others()
        packing.cache.remove_leftovers()
        return until_sound(packing, lambda: _run(packing, output))
    except OSError as error:
        _remove(output)
        where = error.filename or packing.cache.folder
        raise ToolError(
            f"cannot use {where}: {error.strerror or error}", hint="set SQSHPIPE_CACHE to a folder of yours"
        ) from error
    except BaseException:
        _remove(output)
        raise


def _remove(output: Path) -> None:
    with contextlib.suppress(OSError):
        output.unlink()


def _run(packing: Packing, output: Path) -> Converted:
    """One attempt to make the file; a pack or a release that cannot be used ends it."""
    config, options = packing.source.config(), packing.options
    with contextlib.ExitStack() as opened, _no_cycle_collection():
        packs, tree = assembled(packing, opened, output)
        packing.task.total(sum(pack.data_size for pack in packs))
        stitched = _write(packing, tree, packs, output, created_seconds(config.created))
        packing.task.total(stitched.size)
        read = _read_back(output, packs, stitched, packing.task)
        taken = _taken(packing, packs, stitched)
        layers = _layers(packing, tree, packs, stitched, xattrs=options.keep_xattrs)
    log.info("bytes by source", **taken)
    return Converted(
        tree=tree,
        versions={"native": str(FORMAT_VERSION), **packing.codec.versions()},
        sha256=read.sha256,
        size=stitched.size,
        packed=sum(packing.packed),
        ranges=of_layers(
            stitched.size,
            [(key, pack.data_size) for key, pack in zip(packing.keys(), packs, strict=True)],
            stitched.ranges,
        ),
        layers=encode_layers(stitched.size, layers),
        compared=tuple(packing.all_compared()),
        read=read,
    )


def assembled(packing: Packing, opened: contextlib.ExitStack, output: Path | None) -> tuple[list[Pack], Tree]:
    """The pack of each layer and the tree that they add up to; all that can be wrong with the image is known.

    Raises NotHeld when the tree shows an entry of which a release keeps no more than that it was there.
    """
    config, options, limits = packing.source.config(), packing.options, packing.limits
    tally = packing.tally()
    packs = packing.packs(opened, tally, output)
    packing.compare_the_rest(tally)
    names = [pack.index.paths for pack in packs]
    count = sum(map(len, names))
    require_entries(count, 0, limits)  # before they are looked at one by one
    require_entries(count, sum(len(path) for paths in names for path in paths), limits)
    require_memory(count * (NODE + _ENTRY))
    try:
        merged = merge([entries(pack.index) for pack in packs])
    except WithheldError as error:
        raise packs[error.layer].lacking() from error
    tree = enroot_rootfs(merged, config, keep_owners=options.keep_owners, keep_xattrs=options.keep_xattrs)
    hidden = {layer: pack.index.shown for layer, pack in enumerate(packs) if pack.index.shown}
    for node in tree.values() if hidden else ():
        if node.layer in hidden and not hidden[node.layer][node.index]:
            raise packs[node.layer].lacking()
    require_allowed(tree, limits)
    return packs, tree


def _write(packing: Packing, tree: Tree, packs: Sequence[Pack], output: Path, mkfs_time: int) -> Stitched:
    options = StitchOptions(codec=packing.codec, block_size=packing.options.block_size, mkfs_time=mkfs_time)
    try:
        with _created(output) as target:
            return stitch(tree, packs, target, options, on_bytes=packing.task.advance)
    except OSError as error:
        raise cannot_write(error, output, hint="free space there or choose another --output") from error


def _taken(packing: Packing, packs: Sequence[Pack], stitched: Stitched) -> dict[str, int]:
    """Stored bytes that came out of the cache, of each release and, as layers, from the registry."""
    found = {"cache": 0, "registry": sum(packing.read)}
    for item in stitched.ranges:
        pack = packs[item.layer]
        if isinstance(pack, StoredPack):
            for name, length in pack.held_bytes(item.source, item.length):
                found[name] = found.get(name, 0) + length
        else:
            found["cache"] += item.length
    return found


def _layers(
    packing: Packing, tree: Tree, packs: Sequence[Pack], stitched: Stitched, *, xattrs: bool
) -> dict[str, LayerIndex]:
    """What of each pack lies where in the file, by key."""
    shown = [bytearray(len(pack.index)) for pack in packs]
    for node in tree.values():
        if node.layer >= 0:
            shown[node.layer][node.index] = 1
    found: dict[str, LayerIndex] = {}
    for key, numbers in _numbers(packing.keys()).items():
        index = packs[numbers[0]].index
        _show_links(index, tree, packs, shown[numbers[0]])
        placed = stitched.placed(numbers, [shown[number] for number in numbers])
        found[key] = layer_index(index, placed, data_size=packs[numbers[0]].data_size, xattrs=xattrs)
    return found


def _numbers(keys: Sequence[str]) -> dict[str, list[int]]:
    """The numbers of the layers of each key, in order."""
    found: dict[str, list[int]] = {}
    for number, key in enumerate(keys):
        found.setdefault(key, []).append(number)
    return found


def _show_links(index: PackIndex, tree: Tree, packs: Sequence[Pack], shown: bytearray) -> None:
    """Show a hard link of a layer where the tree has it as one more name of what its target is."""
    for number, target in index.targets.items():
        node = tree.get(index.paths[number]) if index.kinds[number] == EntryKind.HARDLINK else None
        if node is None or node.layer < 0:
            continue
        other = tree.get(target)
        same = other is not None and (other.layer, other.index) == (node.layer, node.index)
        if same or packs[node.layer].index.paths[node.index] == target:
            shown[number] = 1


def _read_back(output: Path, packs: Sequence[Pack], stitched: Stitched, task: Task) -> ReadBack:
    try:
        return read_back(output, packs, stitched.ranges, on_bytes=task.advance)
    except (FormatError, OSError) as error:
        if isinstance(error, (PackDamaged, SourceFailed, NotHeld)):
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
    for number, shown in enumerate(index.shown):
        if not shown and found[number].kind in (EntryKind.SYMLINK, EntryKind.HARDLINK):
            found[number].target = WITHHELD
    for number, (major, minor) in index.devices.items():
        found[number].major, found[number].minor = major, minor
    for number, xattrs in index.xattrs.items():
        found[number].xattrs = xattrs
    return found
