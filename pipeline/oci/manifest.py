"""Manifests and indexes, OCI and Docker v2 schema 2 (image-spec manifest.md, image-index.md, descriptor.md).

A manifest is untrusted text that decides which bytes are fetched: it is bounded in size, nesting and counts,
and one that could be read as two things (`layers` together with `manifests`, a media type that contradicts
the content) is refused, since another tool with the same digest might read the other thing (CVE-2021-41190).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from pipeline.errors import ConfigError, FormatError
from pipeline.oci import strict_json
from pipeline.oci.digest import Digest
from pipeline.oci.platform import Platform

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"

MANIFEST_TYPES = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEX_TYPES = (OCI_INDEX, DOCKER_INDEX)
# What to send in an Accept header, best first.
ACCEPT = (OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST)

MAX_SIZE = 4 << 20  # distribution-spec: registries should enforce some limit, 4 MiB is the one that it names
MAX_BLOB = 1 << 44  # bytes, 16 TiB: beyond what any registry takes
MAX_LAYERS = 1024
MAX_MANIFESTS = 4096
MAX_NESTED = 3  # indexes, one in another: more than two are of no use

_LAYER_TYPES = {
    base + suffix: compression
    for base in (
        OCI_LAYER,
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        DOCKER_LAYER,
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    )
    for suffix, compression in (
        ("", "none"),
        ("+gzip", "gzip"),
        (".gzip", "gzip"),
        ("+zstd", "zstd"),
        (".zstd", "zstd"),
    )
}


def _nothing() -> Mapping[str, str]:
    return MappingProxyType({})


_KEYS = ("schemaVersion", "mediaType", "config", "layers", "manifests", "fsLayers", "annotations")
_DESCRIPTOR_KEYS = ("mediaType", "digest", "size", "platform", "annotations")


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """What a manifest says of one blob: `size` bytes with `digest`."""

    media_type: str
    digest: Digest
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default_factory=_nothing, hash=False)

    @property
    def compression(self) -> str:
        """gzip, zstd or none, as the media type of a layer says. Raises FormatError for other media types."""
        try:
            return _LAYER_TYPES[self.media_type]
        except KeyError:
            raise FormatError(
                f"blob {self.digest} has media type {self.media_type[:120]!r}, which is not an image layer",
                hint="this is an artifact or an encrypted image, not a container image",
            ) from None

    @property
    def is_index(self) -> bool:
        return self.media_type in INDEX_TYPES

    @property
    def is_attestation(self) -> bool:
        """Whether it is a builder's statement about another entry of the index, and no image."""
        return "vnd.docker.reference.type" in self.annotations or (
            self.platform is not None and self.platform.is_unknown
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One image for one platform. `digest` is the sha256 of `raw`, the bytes as they came."""

    raw: bytes = field(repr=False)
    digest: Digest
    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=_nothing, hash=False)

    @property
    def size(self) -> int:
        """Bytes of all layers as they are stored."""
        return sum(layer.size for layer in self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """One image for several platforms. `digest` is the sha256 of `raw`, the bytes as they came."""

    raw: bytes = field(repr=False)
    digest: Digest
    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=_nothing, hash=False)

    @property
    def platforms(self) -> tuple[Platform, ...]:
        """The platforms that are offered, attestations left out."""
        return tuple(m.platform for m in self.manifests if m.platform is not None and not m.is_attestation)

    def select(self, platform: Platform) -> Descriptor:
        """The entry for `platform`: an exact variant before another one, else the first that matches.

        An index with one entry without a platform gives that entry: its config has the platform. The result
        may be an index again. Raises NotOneImage with the names of the platforms that are there.
        """
        images = [entry for entry in self.manifests if not entry.is_attestation]
        matching = [m for m in images if m.platform is not None and platform.matches(m.platform)]
        for entry in matching:
            if entry.platform == platform:
                return entry
        if matching:
            return matching[0]
        if len(images) == 1 and images[0].platform is None:
            return images[0]
        raise NotOneImage(
            f"image index {self.digest} has nothing for {platform}", hint=f"it offers {self.offered}"
        )

    @property
    def offered(self) -> str:
        """The platforms, for people."""
        return ", ".join(sorted({str(known) for known in self.platforms})) or "no platform at all"


class NotOneImage(ConfigError):
    """A reference does not name the image of one platform that is asked for; its bytes are sound."""


def descend(
    top: Manifest | Index,
    platform: Platform | None,
    read: Callable[[Descriptor], Manifest | Index],
    name: str,
) -> Manifest:
    """The image for `platform` below `top`, which people call `name`; `read` gives what an entry names.

    With None `top` has to be an image itself. Raises NotOneImage when no image is for the platform,
    FormatError for indexes nested deeper than `MAX_NESTED`, and what `read` raises.
    """
    found = top
    for _ in range(MAX_NESTED + 1):
        if isinstance(found, Manifest):
            return found
        if platform is None:
            raise NotOneImage(
                f"{name} is an index, not the image of one platform", hint=f"it offers {found.offered}"
            )
        try:
            entry = found.select(platform)
        except NotOneImage as error:
            raise NotOneImage(
                f"{name} is not made for {platform}: {error.message}", hint=error.hint
            ) from None
        found = read(entry)
    raise FormatError(f"{name} has indexes nested more than {MAX_NESTED} deep", hint="push it again, flat")


def parse_manifest(raw: bytes, media_type: str | None) -> Manifest | Index:
    """Parse the bytes of a manifest or an index.

    `media_type` is what the registry or descriptor called it (None: not known); it must agree with the bytes.
    The digest of the result is computed, compare it with the one that was asked for. Raises FormatError.
    """
    digest = Digest.of(raw)
    what = f"manifest {digest}"
    value = strict_json.parse_object(raw, max_size=MAX_SIZE, what=what)
    strict_json.check_case(value, _KEYS, what)
    found_type = _media_type(value, media_type, what)
    annotations = _annotations(value, what)
    if found_type in INDEX_TYPES:
        manifests = _descriptors(value, "manifests", MAX_MANIFESTS, what)
        return Index(
            raw=raw, digest=digest, media_type=found_type, manifests=manifests, annotations=annotations
        )
    return Manifest(
        raw=raw,
        digest=digest,
        media_type=found_type,
        config=_descriptor(value.get("config"), f"{what}, config"),
        layers=_descriptors(value, "layers", MAX_LAYERS, what),
        annotations=annotations,
    )


def _media_type(value: Mapping[str, Any], claimed: str | None, what: str) -> str:
    """The media type on which the header, the field and the shape agree."""
    if value.get("schemaVersion") == 1 or "fsLayers" in value:
        raise FormatError(
            f"{what} is of Docker's schema 1, given up in 2017",
            hint="push the image again with a current docker",
        )
    if value.get("schemaVersion") != 2:
        raise FormatError(f"{what} has no schemaVersion 2")
    has_layers, has_manifests = "layers" in value or "config" in value, "manifests" in value
    if has_layers == has_manifests:
        both = "both an image and an index" if has_layers else "neither an image nor an index"
        raise FormatError(f"{what} is {both}")
    stated = strict_json.text(value, "mediaType", what)
    if claimed is not None:
        claimed = claimed.partition(";")[0].strip().lower()
        if claimed in ("application/json", "application/octet-stream", "text/plain", ""):
            claimed = None  # a plain web server's guess says nothing
    if stated and claimed and stated != claimed:
        raise FormatError(f"{what} calls itself {stated[:120]!r} but was announced as {claimed[:120]!r}")
    found = stated or claimed or (OCI_INDEX if has_manifests else OCI_MANIFEST)
    expected = INDEX_TYPES if has_manifests else MANIFEST_TYPES
    if found not in expected:
        kind = "an index" if has_manifests else "an image manifest"
        raise FormatError(f"{what} has media type {found[:120]!r} but is {kind} inside")
    return found


def _descriptors(value: Mapping[str, Any], key: str, most: int, what: str) -> tuple[Descriptor, ...]:
    found = value.get(key)
    if not isinstance(found, list):
        raise FormatError(f"{what}: {key!r} is not a list")
    if len(found) > most:
        raise FormatError(f"{what} lists {len(found)} {key}, more than the {most} that are allowed")
    return tuple(_descriptor(item, f"{what}, {key}[{number}]") for number, item in enumerate(found))


def _descriptor(value: object, what: str) -> Descriptor:
    if not isinstance(value, dict):
        raise FormatError(f"{what} is not a descriptor")
    strict_json.check_case(value, _DESCRIPTOR_KEYS, what)
    media_type = strict_json.text(value, "mediaType", what)
    if not media_type:
        raise FormatError(f"{what} has no mediaType")
    try:
        digest = Digest.parse(strict_json.text(value, "digest", what))
    except FormatError as error:
        raise FormatError(f"{what}: {error.message}", hint=error.hint) from None
    size = strict_json.integer(value, "size", what)
    if size > MAX_BLOB:
        raise FormatError(f"{what} claims {size} bytes, more than any registry takes")
    return Descriptor(
        media_type=media_type,
        digest=digest,
        size=size,
        platform=_platform(value, what),
        annotations=_annotations(value, what),
    )


def _platform(value: Mapping[str, Any], what: str) -> Platform | None:
    found = strict_json.mapping(value, "platform", what)
    if not found:
        return None
    return Platform(
        os=strict_json.text(found, "os", what),
        architecture=strict_json.text(found, "architecture", what),
        variant=strict_json.text(found, "variant", what),
    )


def _annotations(value: Mapping[str, Any], what: str) -> Mapping[str, str]:
    return MappingProxyType(strict_json.text_mapping(value, "annotations", what))
