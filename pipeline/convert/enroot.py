"""The ``enroot`` converter: ``enroot import`` by digest, in places of ours.

enroot looks at nothing that it fetches and unpacks. So the layers are read here, checked as for every other
converter, and put into its cache on the way, in its own form: it finds them all there, and what it unpacks
has passed. Nothing is downloaded twice. Verification then allows what `enroot_differences` lists.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

from zstandard import ZstdCompressor

from pipeline.authn import place_of
from pipeline.config.types import ConvertOptions
from pipeline.convert.blobs import trim
from pipeline.convert.enroot_program import (
    OTHER_CONVERTER,
    CannotImport,
    Enroot,
    Places,
    import_uri,
    refuse_config,
    write_credentials,
)
from pipeline.convert.interface import Converted
from pipeline.convert.mksquashfs_program import Mksquashfs
from pipeline.convert.tree import Copy, read_tree
from pipeline.errors import ConfigError, FormatError, RegistryError, ToolError
from pipeline.oci.config import ImageConfig
from pipeline.oci.digest import Digest
from pipeline.oci.entry import Limits
from pipeline.oci.manifest import Manifest, NotOneImage
from pipeline.oci.reference import Reference
from pipeline.oci.source import ImageSource
from pipeline.oci.tar_header import BLOCK
from pipeline.oci.tree import Tree
from pipeline.progress import Task
from pipeline.registry.errors import Refused
from pipeline.registry.images import image_manifest
from pipeline.registry.source import RegistrySource
from pipeline.system.log import log
from pipeline.system.scratch import THE_RESULT, SpaceRequirement, held_folder, require_space
from pipeline.text import said

_UNPACKED = 2  # layers unpacked are at least this many times as large as stored
_MOST_TAGS = 200  # looked at for one that stands for a digest


def convert_enroot(
    source: ImageSource,
    options: ConvertOptions,
    *,
    output: Path,
    scratch: Path,
    cache: Path,
    limits: Limits,
    task: Task,
) -> Converted:
    """Write ``output``; ``scratch`` is an empty folder of ours, ``cache`` holds layers for the next time.

    Raises ToolError when enroot fails, RegistryError when a tag moves meanwhile (before enroot 4, which reads
    tags only), FormatError for what no converter takes. Where another converter would succeed, the error is
    also an `UnsupportedByConverter`. ConfigError for sources and options that enroot does not support.
    """
    if not isinstance(source, RegistrySource):
        raise ConfigError(
            f"enroot cannot import {source.name}, only images in a registry", hint=OTHER_CONVERTER
        )
    if options.keep_owners or options.keep_xattrs:
        raise ConfigError("enroot keeps neither owners nor extended attributes", hint=OTHER_CONVERTER)
    tool, packer = Enroot.find(), _packer()
    manifest = source.manifest()
    refuse_config(source.config())
    layers = cache / "enroot"
    _require_space(manifest, scratch, layers, output)
    reference = str(manifest.digest) if tool.takes_digests else _tag_of(source)
    places = Places.below(scratch / "enroot", cache=layers)
    _lend_credentials(source, places)
    handed = _Handed(source, layers)
    tree = _checked(handed, limits, task)
    task.total(manifest.size)  # its pace is not known: counted as done at the end
    tool.import_image(
        import_uri(source.client.host, source.repository, reference),
        output,
        places=places,
        architecture=source.config().platform.architecture,
        plain_http=source.client.plain_http,
        compressor=options.compressor,
        zstd_level=options.zstd_level,
        block_size=options.block_size,
        on_line=lambda line: log.debug(said(line), tool="enroot"),
    )
    places.credentials.unlink(missing_ok=True)
    task.advance(manifest.size)
    if not tool.takes_digests and not _stands_for(source, reference, manifest.digest):
        raise RegistryError(
            f"{source.client.host}/{source.repository}:{reference} was moved while enroot read it",
            hint="convert again; enroot 4 reads by digest, which cannot move",
        )
    trim(layers)
    return Converted(tree=tree, versions={"enroot": tool.version_text, "mksquashfs": packer.version_text})


def _packer() -> Mksquashfs:
    """What enroot packs with."""
    try:
        return Mksquashfs.find()
    except ToolError as error:
        raise CannotImport(error.headline, hint=error.hint, details=error.details) from error


def _checked(handed: _Handed, limits: Limits, task: Task) -> Tree:
    """The tree that must come out; afterwards all that enroot reads of the image but its manifest is in its
    cache. A layer that went bad there is fetched again.
    """
    try:
        return read_tree(handed, limits=limits, task=task, copies=handed.copy)
    except FormatError:
        if not handed.forget():
            raise
    return read_tree(handed, limits=limits, task=task, copies=handed.copy)


class _Handed:
    """An `ImageSource`: layers out of enroot's cache, where they are plain zstd under the digests that they
    came with, or out of the registry, with a copy that goes there.
    """

    def __init__(self, source: RegistrySource, folder: Path) -> None:
        self.name = source.name
        self._source = source
        self._folder = folder
        self._found: set[Path] = set()
        config = source.config()
        with self._writing(folder / config.digest.hex) as write:
            write(config.raw)

    def manifest(self) -> Manifest:
        return self._source.manifest()

    def config(self) -> ImageConfig:
        return self._source.config()

    def open_layer(self, index: int) -> AbstractContextManager[BinaryIO]:
        path = self._path(index)
        with contextlib.suppress(FileNotFoundError):
            stream = path.open("rb")
            self._found.add(path)
            return stream
        return self._source.open_layer(index)

    def copy(self, index: int) -> AbstractContextManager[Copy | None]:
        """What puts layer ``index`` into the cache, unless it is there."""
        path = self._path(index)
        if not path.exists():
            return self._padded(path)
        with contextlib.suppress(OSError):
            os.utime(path)  # used now: trimmed last
        return contextlib.nullcontext()

    def forget(self) -> bool:
        """Remove what was found in the cache; whether there was anything."""
        found, self._found = self._found, set()
        for path in found:
            path.unlink(missing_ok=True)
        return bool(found)

    def _path(self, index: int) -> Path:
        return self._folder / self.manifest().layers[index].digest.hex

    @contextlib.contextmanager
    def _padded(self, path: Path) -> Iterator[Copy]:
        """Write a tar in whole blocks: engines take one whose last padding is missing, GNU tar does not."""
        size = 0

        def write(data: bytes) -> None:
            nonlocal size
            size += len(data)
            append(data)

        with self._writing(path) as append:
            yield write
            append(bytes(-size % BLOCK))

    @contextlib.contextmanager
    def _writing(self, path: Path) -> Iterator[Copy]:
        """Write zstd that takes the name ``path`` when the block ends without an exception."""
        hint = "set SQSHPIPE_CACHE to a folder with room that you can write"
        try:
            with held_folder(self._folder, hint=hint) as temporary:
                packer = ZstdCompressor(level=1, threads=1)  # a thread of its own
                unfinished = temporary / path.name
                descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with os.fdopen(descriptor, "wb") as file, packer.stream_writer(file, closefd=False) as stream:
                    yield stream.write
                unfinished.rename(path)
        except OSError as error:
            raise ToolError(
                f"cannot write to the cache folder {self._folder}: {error.strerror or error}", hint=hint
            ) from error


def _require_space(manifest: Manifest, scratch: Path, layers: Path, output: Path) -> None:
    missing = sum(layer.size for layer in manifest.layers if not (layers / layer.digest.hex).exists())
    require_space(
        [
            SpaceRequirement(folder=layers, size=missing, purpose="layers"),
            SpaceRequirement(folder=scratch, size=_UNPACKED * manifest.size, purpose="unpacking"),
            SpaceRequirement(folder=output.parent, size=manifest.size // 2, purpose=THE_RESULT),
        ]
    )


def _lend_credentials(source: RegistrySource, places: Places) -> None:
    """A netrc file for this import alone; without credentials enroot asks anonymously."""
    known = source.client.credentials
    found = known(place_of(known, f"{source.client.host}/{source.repository}"))
    if found is None:
        return
    if found.identity_token:
        raise CannotImport(
            f"the login to {source.client.host} is an identity token, which enroot cannot use",
            hint=OTHER_CONVERTER,
        )
    write_credentials(places, source.client.host, found.username, found.password)


def _tag_of(source: RegistrySource) -> str:
    """A tag that stands for the image, for versions of enroot that know no digests."""
    digest = source.manifest().digest
    try:
        tags = source.client.tags(source.repository)
    except Refused as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        tags = []  # so some registries answer for a repository without any
    for tag in sorted(tags, key=lambda tag: not tag.startswith("key-"))[:_MOST_TAGS]:  # ours never move
        if _stands_for(source, tag, digest):
            return tag
    raise CannotImport(
        f"{source.name} has no tag, and enroot before 4.0.0 cannot import by digest",
        hint=f"give it a tag, install enroot 4, or {OTHER_CONVERTER}",
    )


def _stands_for(source: RegistrySource, tag: str, digest: Digest) -> bool:
    """Whether enroot, asked for ``tag``, would take the manifest ``digest``."""
    head = source.client.head(source.repository, tag)
    if head is None:
        return False
    if not head.is_index:
        return head.digest == digest
    image = Reference(registry=source.client.host, repository=source.repository, tag=tag)
    try:
        return image_manifest(source.client, image, source.config().platform).digest == digest
    except NotOneImage:
        return False
