"""Images in the tar that `docker save` writes, read from inside the tar.

Engines before 25 wrote manifest.json beside a folder for each layer, newer ones an OCI layout with
manifest.json in addition; the layout is taken where there is one, since it has the image's own digests.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

from pipeline.errors import ConfigError, FormatError
from pipeline.oci import config as image_config
from pipeline.oci import manifest as manifests
from pipeline.oci import pax, strict_json
from pipeline.oci.blob import CheckedBlob, Section
from pipeline.oci.config import ImageConfig, parse_config
from pipeline.oci.digest import Digest
from pipeline.oci.layer import detect
from pipeline.oci.layout import FolderFiles, LayoutSource, spellings
from pipeline.oci.manifest import Manifest, parse_manifest
from pipeline.oci.platform import Platform
from pipeline.oci.source import ImageSource, check_layer_count
from pipeline.oci.tar_header import BLOCK, ZERO_BLOCK, Header, natural, parse_header

_MAX_MEMBERS = 100_000
_MAX_EXTENDED = 1 << 20
_MAX_LINKS = 8
_PIECE = 1 << 20
_SUFFIX = {"gzip": ".gzip", "zstd": ".zstd", "none": ""}


def open_archive(path: Path, reference: str | None = None, *, platform: Platform) -> ImageSource:
    """The image `docker-archive:PATH`; `reference` (a name as in RepoTags, or a tag) when there are several.

    Raises ConfigError when the file cannot be read, is compressed, or has no such image.
    """
    name = f"docker-archive:{path}" + (f":{reference}" if reference else "")
    files = TarFiles(path)
    if files.has("index.json") and files.has("oci-layout"):
        return LayoutSource(files, name=name, tag=reference, platform=platform)
    if not files.has("manifest.json"):
        raise ConfigError(
            f"{path} holds no image: it has neither manifest.json nor index.json",
            hint="write it with: docker save -o FILE IMAGE (not docker export)",
        )
    return ClassicSource(files, name=name, reference=reference, platform=platform)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    offset: int
    size: int
    link: str | None = None


class TarFiles:
    """The files in a tar that can be seeked in; their contents are not read until they are asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._open_tar() as file:
            head = file.read(6)
            if detect(head) != "none":
                raise ConfigError(
                    f"{path} is compressed, so layers cannot be read from inside it",
                    hint=f"unpack it first: {'gunzip' if detect(head) == 'gzip' else 'unzstd'} {path}",
                )
            self._members = _members(file, path)

    def has(self, path: str) -> bool:
        return path in self._members

    def open(self, path: str) -> BinaryIO:
        member = self.member(path)
        return cast("BinaryIO", Section(self._open_tar(), member.offset, member.size))

    def size(self, path: str) -> int:
        return self.member(path).size

    def member(self, path: str) -> _Member:
        """Where the content of `path` lies; links inside the tar are followed."""
        for _ in range(_MAX_LINKS):
            found = self._members.get(path)
            if found is None:
                raise FormatError(f"{self._path} has no {path[:200]!r} in it", hint="save the image again")
            if found.link is None:
                return found
            path = found.link
        raise FormatError(f"{self._path} has links in a circle at {path[:200]!r}")

    def _open_tar(self) -> BinaryIO:
        try:
            return FolderFiles(self._path.parent).open(self._path.name)
        except FormatError as error:
            raise ConfigError(error.message, hint="give a file that docker save has written") from None


def _members(file: BinaryIO, path: Path) -> dict[str, _Member]:
    """Names and places of the files and links; contents are jumped over."""
    members: dict[str, _Member] = {}
    size = file.seek(0, 2)
    offset = 0
    extended: dict[bytes, bytes] = {}
    for _ in range(_MAX_MEMBERS):
        file.seek(offset)
        block = file.read(BLOCK)
        if not block or block == ZERO_BLOCK:
            return members
        if len(block) < BLOCK:
            break
        header = parse_header(block)
        length = _length(header, extended)
        offset += BLOCK
        if offset + length > size:
            break
        if header.kind in b"xLK":
            extended.update(_extended(header.kind, file.read(min(length, _MAX_EXTENDED))))
        elif header.kind != b"g":
            _add(members, header, extended, offset, length)
            extended = {}
        offset += length + -length % BLOCK
    else:
        raise FormatError(f"{path} has more than {_MAX_MEMBERS} members, so it is not a saved image")
    raise FormatError(f"{path} ends in the middle of a member", hint="it was cut short; save the image again")


def _length(header: Header, extended: Mapping[bytes, bytes]) -> int:
    if header.kind in b"125346":
        return 0
    if b"size" in extended and header.kind not in b"xgLK":
        return pax.number(extended[b"size"], "size")
    return natural(header.size, "size")


def _extended(kind: bytes, body: bytes) -> dict[bytes, bytes]:
    if kind == b"x":
        return pax.parse_records(body).values
    return {b"path" if kind == b"L" else b"linkpath": body.partition(b"\0")[0]}


def _add(
    members: dict[str, _Member], header: Header, extended: Mapping[bytes, bytes], offset: int, length: int
) -> None:
    name = posixpath.normpath(extended.get(b"path", header.name).decode("utf-8", "surrogateescape")).lstrip(
        "/"
    )
    target = extended.get(b"linkpath", header.target).decode("utf-8", "surrogateescape")
    if header.kind in b"0\x007":
        members[name] = _Member(offset=offset, size=length)
    elif header.kind == b"2":  # older engines wrote one for a layer that is there twice
        link = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
        members[name] = _Member(offset=0, size=0, link=link)
    elif header.kind == b"1":
        members[name] = _Member(offset=0, size=0, link=posixpath.normpath(target))


class ClassicSource:
    """An image of manifest.json; an ImageSource.

    There is no manifest of the image in such an archive, so one is made whose layers are those in the
    archive, with the digests of their bytes: what the config states is compared with them.
    """

    def __init__(self, files: TarFiles, *, name: str, reference: str | None, platform: Platform) -> None:
        self.name = name
        self._files = files
        self._reference = reference
        self._platform = platform

    def manifest(self) -> Manifest:
        return self._manifest

    def config(self) -> ImageConfig:
        return self._config

    def open_layer(self, index: int) -> AbstractContextManager[BinaryIO]:
        file = self._files.open(self._layer_paths[index])
        what = f"layer {index + 1} of {self.name}"
        return cast("BinaryIO", CheckedBlob(file, self._manifest.layers[index], what))

    @cached_property
    def _entry(self) -> dict[str, Any]:
        """The image's entry in manifest.json."""
        with self._files.open("manifest.json") as file:
            raw = file.read(manifests.MAX_SIZE)
        # The file is a list, and the strict parser takes objects.
        wrapped = strict_json.parse_object(
            b'{"images":' + raw + b"}", max_size=manifests.MAX_SIZE, what=f"{self.name}, manifest.json"
        )
        images = wrapped["images"]
        if (
            set(wrapped) != {"images"}
            or not isinstance(images, list)
            or not all(isinstance(i, dict) for i in images)
        ):
            raise FormatError(f"{self.name}: manifest.json is not a list of images")
        known = {tag for image in images for tag in strict_json.texts(image, "RepoTags", self.name)}
        if self._reference is not None:
            asked = self._reference
            wanted = {
                tag for tag in known if spellings(tag) & spellings(asked) or tag.rpartition(":")[2] == asked
            }
            images = [
                image for image in images if wanted & set(strict_json.texts(image, "RepoTags", self.name))
            ]
        if len(images) != 1:
            raise ConfigError(
                f"{self.name} names {len(images)} images, not one",
                hint=f"it has {', '.join(sorted(known)) or 'none'}",
            )
        return cast("dict[str, Any]", images[0])

    @cached_property
    def _layer_paths(self) -> tuple[str, ...]:
        paths = strict_json.texts(self._entry, "Layers", self.name)
        if len(paths) > manifests.MAX_LAYERS:
            raise FormatError(f"{self.name} lists {len(paths)} layers, more than {manifests.MAX_LAYERS}")
        return tuple(posixpath.normpath(path) for path in paths)

    @cached_property
    def _config(self) -> ImageConfig:
        path = posixpath.normpath(strict_json.text(self._entry, "Config", self.name))
        with self._files.open(path) as file:
            config = parse_config(file.read(image_config.MAX_SIZE + 1))
        name = posixpath.basename(path).removesuffix(".json")
        if len(name) == len(config.digest.hex) and name != config.digest.hex:
            raise FormatError(
                f"the config of {self.name} has digest {config.digest}, not the one of its name"
            )
        if not self._platform.matches(config.platform):
            raise ConfigError(f"{self.name} is for {config.platform}, not for {self._platform}")
        return config

    @cached_property
    def _manifest(self) -> Manifest:
        layers = []
        if len(self._layer_paths) != len(self._config.diff_ids):
            raise FormatError(
                f"{self.name} has {len(self._layer_paths)} layers but its config {len(self._config.diff_ids)}"
            )
        for number, (path, diff_id) in enumerate(zip(self._layer_paths, self._config.diff_ids, strict=True)):
            compression, digest = self._look(path, diff_id.algorithm)
            if compression == "none" and digest != diff_id:
                raise FormatError(
                    f"layer {number + 1} of {self.name} has digest {digest}, its config says {diff_id}",
                    hint="its bytes were changed or damaged; save the image again",
                )
            size = self._files.member(path).size
            media_type = manifests.DOCKER_LAYER + _SUFFIX[compression]
            layers.append({"mediaType": media_type, "digest": str(digest), "size": size})
        config = {
            "mediaType": manifests.DOCKER_CONFIG,
            "digest": str(self._config.digest),
            "size": len(self._config.raw),
        }
        value = {
            "schemaVersion": 2,
            "mediaType": manifests.DOCKER_MANIFEST,
            "config": config,
            "layers": layers,
        }
        made = parse_manifest(json.dumps(value, separators=(",", ":")).encode(), None)
        if not isinstance(made, Manifest):
            raise TypeError(made)
        check_layer_count(made, self._config, self.name)
        return made

    def _look(self, path: str, algorithm: str) -> tuple[str, Digest]:
        """How the layer is stored, and the digest of what is stored."""
        hasher = hashlib.new(algorithm)
        with self._files.open(path) as file:
            head = file.read(6)
            hasher.update(head)
            while piece := file.read(_PIECE):
                hasher.update(piece)
        return detect(head), Digest(algorithm=algorithm, hex=hasher.hexdigest())
