"""Images in an OCI image layout (image-spec image-layout.md): a folder, or the same files inside a tar."""

from __future__ import annotations

import contextlib
import os
import stat
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from pipeline.errors import ConfigError, FormatError
from pipeline.oci import config as image_config
from pipeline.oci import manifest as manifests
from pipeline.oci import strict_json
from pipeline.oci.blob import CheckedBlob
from pipeline.oci.config import ImageConfig, parse_config
from pipeline.oci.manifest import Descriptor, Index, Manifest, parse_manifest
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference
from pipeline.oci.source import check_layer_count

REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"


class Files(Protocol):
    """The files of an OCI layout, by name: those of a folder or those inside a tar."""

    def open(self, path: str) -> BinaryIO:
        """The regular file at `path`, from its beginning. Raises FormatError when it is not there."""

    def has(self, path: str) -> bool:
        """Whether there is something at `path`."""

    def size(self, path: str) -> int:
        """The bytes of the file at `path`. Raises FormatError when it is not there."""


class FolderFiles:
    """The files below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, path: str) -> BinaryIO:
        where = self._folder / path
        try:
            # Without O_NONBLOCK a fifo of that name would block us without end.
            descriptor = os.open(where, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise FormatError(
                f"{where} is missing", hint="the layout is not complete; write it again"
            ) from None
        except OSError as error:
            raise ConfigError(f"{where} cannot be read: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FormatError(f"{where} is not a regular file")
        return os.fdopen(descriptor, "rb")

    def has(self, path: str) -> bool:
        return (self._folder / path).exists()

    def size(self, path: str) -> int:
        with self.open(path) as file:
            return file.seek(0, os.SEEK_END)


def open_layout(folder: Path, tag: str | None = None, *, platform: Platform) -> LayoutSource:
    """The image `oci:FOLDER[:TAG]`. Raises ConfigError when there is no such layout, tag or platform."""
    files = FolderFiles(folder)
    if not files.has("index.json"):
        raise ConfigError(f"{folder} is not an OCI image layout: it has no index.json")
    return LayoutSource(files, name=f"oci:{folder}" + (f":{tag}" if tag else ""), tag=tag, platform=platform)


def parse_location(text: str) -> tuple[Path, str | None]:
    """`FOLDER[:NAME]`, as people write it after `oci:`.

    A name may have colons and slashes (`centos:8`, `team/app:v1`), and so may a folder: the longest folder
    that is there is taken. Otherwise the name begins after the last colon with no slash behind it.
    """
    pieces = text.split(":")
    for count in range(len(pieces), 0, -1):
        folder = ":".join(pieces[:count])
        if folder and Path(folder).is_dir():
            return Path(folder), ":".join(pieces[count:]) or None
    folder, colon, tag = text.rpartition(":")
    if not colon or "/" in tag:
        return Path(text), None
    return Path(folder), tag


class LayoutSource:
    """An image of a layout; an ImageSource. Every blob's size and digest is checked."""

    def __init__(self, files: Files, *, name: str, tag: str | None, platform: Platform) -> None:
        self.name = name
        self._files = files
        self._tag = tag
        self._platform = platform

    def manifest(self) -> Manifest:
        return self._manifest

    def config(self) -> ImageConfig:
        return self._config

    def open_layer(self, index: int) -> AbstractContextManager[BinaryIO]:
        return self._open(self._manifest.layers[index], f"layer {index + 1}")

    @cached_property
    def _manifest(self) -> Manifest:
        top = self._parsed(self._choose(self._index()))
        found = manifests.descend(top, self._platform, self._parsed, self.name)
        for number, layer in enumerate(found.layers, 1):
            self._require_whole(layer, f"layer {number} of {self.name}")
        return found

    def _require_whole(self, layer: Descriptor, what: str) -> None:
        """Raise FormatError for a blob that is shorter than claimed, before room is sought for the claim."""
        path = _blob_path(layer)
        if not self._files.has(path):
            return  # it may be in the cache
        size = self._files.size(path)
        if size < layer.size:
            raise FormatError(f"{what} ends after {size} of {layer.size} bytes")

    def _parsed(self, descriptor: Descriptor) -> Manifest | Index:
        raw = self._read(descriptor, manifests.MAX_SIZE, "manifest")
        return parse_manifest(raw, descriptor.media_type)

    @cached_property
    def _config(self) -> ImageConfig:
        config = parse_config(self._read(self._manifest.config, image_config.MAX_SIZE, "config"))
        check_layer_count(self._manifest, config, self.name)
        if not self._platform.matches(config.platform):
            raise ConfigError(f"{self.name} is for {config.platform}, not for {self._platform}")
        return config

    def _index(self) -> Index:
        if self._files.has("oci-layout"):
            with self._files.open("oci-layout") as file:
                marker = strict_json.parse_object(
                    file.read(4097), max_size=4096, what=f"{self.name}, oci-layout"
                )
            if marker.get("imageLayoutVersion") != "1.0.0":
                raise FormatError(
                    f"{self.name} has layout version {marker.get('imageLayoutVersion')!r:.40}, not 1.0.0"
                )
        with self._files.open("index.json") as file:
            raw = file.read(manifests.MAX_SIZE + 1)
        found = parse_manifest(raw, manifests.OCI_INDEX)
        if not isinstance(found, Index):
            raise FormatError(f"{self.name}: index.json is not an index")
        return found

    def _choose(self, index: Index) -> Descriptor:
        """The entry of index.json that has the tag and serves the platform."""
        images = [entry for entry in index.manifests if not entry.is_attestation]
        if self._tag is not None:
            wanted = spellings(self._tag)
            images = [entry for entry in images if wanted & _names(entry)]
        if not images:
            known = ", ".join(sorted({name for entry in index.manifests for name in _names(entry)}))
            raise ConfigError(f"{self.name} is not in the layout", hint=f"it has {known or 'no tags'}")
        if len({entry.digest for entry in images}) == 1:
            return images[0]
        fitting = [
            entry for entry in images if entry.platform is not None and self._platform.matches(entry.platform)
        ]
        if len({entry.digest for entry in fitting}) == 1:
            return fitting[0]
        known = ", ".join(sorted({name for entry in images for name in _names(entry)}))
        raise ConfigError(
            f"{self.name} holds {len(images)} images", hint=f"name one of them by its tag: {known}"
        )

    def _open(self, descriptor: Descriptor, what: str) -> BinaryIO:
        file = self._files.open(_blob_path(descriptor))
        return cast("BinaryIO", CheckedBlob(file, descriptor, f"{what} of {self.name}"))

    def _read(self, descriptor: Descriptor, most: int, what: str) -> bytes:
        if descriptor.size > most:
            raise FormatError(f"the {what} of {self.name} has {descriptor.size} bytes, more than {most}")
        with self._open(descriptor, f"the {what}") as blob:
            return b"".join(iter(lambda: blob.read(1 << 20), b""))


def _blob_path(descriptor: Descriptor) -> str:
    return f"blobs/{descriptor.digest.algorithm}/{descriptor.digest.hex}"


def spellings(name: str) -> set[str]:
    """`name` itself and, if it is the name of an image, its form with registry and folder."""
    with contextlib.suppress(ConfigError):
        return {name, str(Reference.parse(name))}
    return {name}


def _names(entry: Descriptor) -> set[str]:
    """What the entry may be asked for by."""
    return {name for key in (REF_NAME, CONTAINERD_NAME) if (name := entry.annotations.get(key))}
