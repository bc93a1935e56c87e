"""Convert: from an image to a .sqsh, by one of three converters behind one interface.

The file is written in a folder beside its place and moved there when it is complete, so that nobody ever
sees half of one. Scratch is removed on any exit; what a run that was killed left is removed by the next.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipeline.config.types import ConvertOptions
from pipeline.convert import measured
from pipeline.convert.interface import Converted, Converter
from pipeline.convert.tree import require_sizes
from pipeline.errors import ConfigError, FormatError, ToolError, UnsupportedByConverter
from pipeline.oci import environment
from pipeline.oci.config import ImageConfig
from pipeline.oci.digest import Digest
from pipeline.oci.entry import DEFAULT_LIMITS, Limits
from pipeline.oci.manifest import Descriptor
from pipeline.oci.rootfs import FORMAT_VERSION
from pipeline.oci.source import ImageSource
from pipeline.oci.tree import Tree
from pipeline.progress import NO_TASK, Task
from pipeline.squashfs.cache import Compared, Pair
from pipeline.squashfs.proof import ReadBack
from pipeline.squashfs.ranges import PackRanges
from pipeline.system.hashing import hashed
from pipeline.system.log import log
from pipeline.system.memory import out_of_memory
from pipeline.system.scratch import held_folder, scratch_folder

if TYPE_CHECKING:
    from pipeline.convert.from_store import StoredLayers

# Counted up when a converter gives other bytes for the same input: releases are then made anew.
CONVERTER_VERSIONS: Mapping[str, int] = {"enroot": 1, "mksquashfs": 1, "native": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConverterRecord:
    """How a file was made: the converter, its options, the versions of the tools, that of the four files."""

    name: str
    options: Mapping[str, str | int | bool]
    versions: Mapping[str, str]
    format: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenFile:
    """A .sqsh that is complete: ``size`` in bytes, ``tree`` is what must be in it."""

    path: Path
    sha256: str
    size: int
    converter: ConverterRecord
    tree: Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class SquashfsFile(WrittenFile):
    """A .sqsh that a converter has made of an image.

    ``source`` is the digest of the image's manifest, ``layers`` what it lists, base first, ``ranges`` what of
    the file is out of layer packs, ``layer_indexes`` what is attached to a release about them, ``read`` what
    was read back from the disk (all three native only), ``compared`` the layers whose blobs were compared
    with their diff_ids.
    """

    source: Digest
    convert_key: str
    config: ImageConfig
    layers: tuple[Descriptor, ...] = ()
    ranges: PackRanges | None = None
    layer_indexes: bytes | None = None
    compared: tuple[tuple[Pair, Compared], ...] = ()
    read: ReadBack | None = None


def choose_converter(options: ConvertOptions, *, from_registry: bool = True) -> str:
    """The converter that ``auto`` begins with: enroot where it is installed and can read the source.

    `convert` continues with ``native`` where enroot then turns out not to do for the image.
    """
    if options.converter != "auto":
        return options.converter
    keeps = options.keep_owners or options.keep_xattrs  # enroot drops both
    if from_registry and not keeps and shutil.which("enroot"):
        return "enroot"
    return "native"


def convert_key(source: Digest, options: ConvertOptions, converter: str) -> str:
    """What the file depends on, as hex: image digest, options, and the versions of converter and format.

    The tools' own versions are left out: another host with another mksquashfs does not make a release stale.
    """
    facts = {
        "source": str(source),
        "converter": converter,
        "version": CONVERTER_VERSIONS[converter],
        "format": FORMAT_VERSION,
        "options": recorded(options),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def convert(
    source: ImageSource,
    options: ConvertOptions,
    *,
    output: Path,
    scratch: Path,
    cache: Path,
    limits: Limits = DEFAULT_LIMITS,
    staged: bool = False,
    task: Task = NO_TASK,
    stored: StoredLayers | None = None,
) -> SquashfsFile:
    """Make ``output`` from ``source``; what is at ``output`` is replaced once the new file is complete.

    ``staged`` says that ``output`` is a name of a store's staging area, which the store cleans up, with all
    longer names that begin with it. ``scratch`` is where a working folder is made, ``cache`` keeps layers for
    the next time; beyond ``limits`` an image is refused. ``stored`` are releases of which ``native`` takes
    what they have of the layers. Raises ToolError (a tool, space, a folder that cannot be written),
    RegistryError, FormatError, ConfigError.
    """
    name = choose_converter(options, from_registry=_is_registry(source))
    _compare_with_native(name, source, options, cache)
    output = output.absolute()
    _require_writable(output.parent)

    require_sizes(source, limits)
    for variable, why in environment.losses(source.config().env):
        log.warning("a variable differs from what Docker gives", image=source.name, name=variable, why=why)

    def made(name: str, partial: Path) -> Converted:
        log.info("converting", image=source.name, converter=name)
        began = time.monotonic()
        converter = _converter(name)
        if name == "native" and stored is not None:
            converter = functools.partial(cast("Any", converter), stored=stored)
        with scratch_folder(scratch) as folder:
            done = converter(
                source, options, output=partial, scratch=folder, cache=cache, limits=limits, task=task
            )
        _note_measure(done, source, cache, seconds=time.monotonic() - began)
        return done

    try:
        with _unfinished(output, staged=staged) as partial:
            try:
                done = made(name, partial)
            except UnsupportedByConverter as error:
                if options.converter != "auto":
                    raise
                log.warning("enroot cannot convert this image, native is used", why=error.headline)
                partial.unlink(missing_ok=True)
                name = "native"
                done = made(name, partial)
            sha256, size = (done.sha256, done.size) if done.sha256 else seal(partial)
            partial.replace(output)
    except FormatError as error:
        if source.name in error.message:
            raise
        raise FormatError(f"{source.name}: {error.message}", hint=error.hint) from error
    except (MemoryError, OSError, RuntimeError) as error:
        raise out_of_memory(error) or error from error
    return SquashfsFile(
        path=output,
        sha256=sha256,
        size=size,
        source=source.manifest().digest,
        converter=ConverterRecord(
            name=name, options=recorded(options), versions=dict(done.versions), format=FORMAT_VERSION
        ),
        convert_key=convert_key(source.manifest().digest, options, name),
        tree=done.tree,
        config=source.config(),
        layers=source.manifest().layers,
        ranges=done.ranges,
        layer_indexes=done.layers,
        compared=done.compared,
        read=done.read,
    )


def _note_measure(done: Converted, source: ImageSource, cache: Path, *, seconds: float) -> None:
    """Remember how long a conversion took that had to pack every layer."""
    if done.packed == sum({layer.digest: layer.size for layer in source.manifest().layers}.values()):
        measured.note(cache, seconds=seconds, size=done.packed)


def _compare_with_native(name: str, source: ImageSource, options: ConvertOptions, cache: Path) -> None:
    """Where ``auto`` runs enroot: one line with the time that ``native`` takes, if that was measured here."""
    if name != "enroot" or options.converter != "auto":
        return
    seconds = measured.expected(cache, sum(layer.size for layer in source.manifest().layers))
    if seconds is not None:
        log.info(
            "enroot is used, since it is installed; as measured on this host, native takes about "
            f"{max(seconds, 1):.0f} s for these layers, less where it has packs (converter: native)"
        )


@contextlib.contextmanager
def _unfinished(output: Path, *, staged: bool) -> Iterator[Path]:
    """Where the file is written until it is complete: on the same file system, and removed if it stays there.

    A folder of its own beside the place is found by the next run when this one is killed.
    """
    if not staged:
        with held_folder(output.parent, hint="choose another --output") as beside:
            yield beside / output.name
        return
    partial = output.with_name(f"{output.name}.partial")
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def recorded(options: ConvertOptions) -> dict[str, str | int | bool]:
    """The options that change the file: not which converter was asked for, nor when its work may begin."""
    return {key: value for key, value in asdict(options).items() if key not in ("converter", "early")}


def _is_registry(source: ImageSource) -> bool:
    from pipeline.registry.source import RegistrySource

    return isinstance(source, RegistrySource)


def _converter(name: str) -> Converter:
    """The function behind a name; each brings imports that the others do not need."""
    if name == "enroot":
        from pipeline.convert.enroot import convert_enroot

        return convert_enroot
    if name == "mksquashfs":
        from pipeline.convert.mksquashfs import convert_mksquashfs

        return convert_mksquashfs
    if name == "native":
        from pipeline.convert.native import convert_native

        return convert_native
    raise ConfigError(f"{name!r} is not a converter", hint="enroot, mksquashfs or native, or auto")


def _require_writable(folder: Path) -> None:
    if not folder.is_dir():
        raise ToolError(
            f"cannot write to {folder}: no such folder", hint="create it, or choose another --output"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ToolError(f"cannot write to {folder}: permission denied", hint="choose another --output")


def seal(file: Path) -> tuple[str, int]:
    """sha256 and size of a complete file, which is on disk and readable by all afterwards."""
    try:
        with file.open("rb") as stream:
            sha256 = hashed(stream).hexdigest()
            os.fchmod(stream.fileno(), 0o644)
            os.fsync(stream.fileno())
            return sha256, stream.tell()
    except OSError as error:
        raise ToolError(
            f"the new file in {file.parent} cannot be read back: {error.strerror}",
            hint="check the disk, or choose another --output",
        ) from error
