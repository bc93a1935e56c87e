"""What images, versions and channels may be called.

Every name becomes a file name in the store and a tag or repository in a registry. So a name must be valid as
both. The rules of registries: https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#pulling-manifests
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import NewType

from pipeline.errors import ConfigError

DEFAULT_PLATFORM = "linux/amd64"
DEFAULT_CHANNEL = "latest"
CHANNELS = ("latest", "stable")
"""Channels of every image; images.yaml may name more."""

Version = NewType("Version", str)
"""A version that `check_version` has accepted."""

_IMAGE = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_VERSION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_CHANNEL = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_PLATFORM = re.compile(r"[a-z0-9]+/[a-z0-9_]+(?:/[a-z0-9]+)?")
_PLATFORM_SUFFIX = re.compile(r"\.(?:linux|darwin|windows|freebsd)-[a-z0-9_]+(?:-v[0-9]+)?$")
_IMAGE_LENGTH = 128
_RESERVED_IMAGES = frozenset({"blobs", "leases"})
_RESERVED_VERSIONS = frozenset({"index"})


def is_image(name: str) -> bool:
    """Whether a folder of that name can belong to an image."""
    return len(name) <= _IMAGE_LENGTH and bool(_IMAGE.fullmatch(name)) and name not in _RESERVED_IMAGES


def check_image(name: str) -> str:
    """Return `name`. Raises ConfigError unless it can name a folder of the store and a repository."""
    if len(name) > _IMAGE_LENGTH or not _IMAGE.fullmatch(name):
        raise ConfigError(
            f"{name!r} is not an image name",
            hint="use lower-case letters and digits, with single . _ or - between them, at most 128 in all",
        )
    if name in _RESERVED_IMAGES:
        raise ConfigError(f"an image cannot be called {name!r}", hint="the store has a folder of that name")
    return name


def check_version(version: str, *, channels: Iterable[str] = CHANNELS) -> Version:
    """Return `version`. Raises ConfigError unless it can be a file name and a tag, and is not a channel."""
    if not _VERSION.fullmatch(version):
        raise ConfigError(
            f"{version!r} is not a version",
            hint="use letters, digits and . _ -, beginning with a letter, digit or _, at most 128 in all",
        )
    if version in (*CHANNELS, *channels):
        raise ConfigError(
            f"{version!r} is a channel and cannot be a version",
            hint=f"publish under a version such as v1.0, then: sqshpipe promote IMAGE:v1.0 {version}",
        )
    taken = (
        version in _RESERVED_VERSIONS
        or version.startswith("key-")
        or version.endswith((".json", ".sqsh"))
        or _PLATFORM_SUFFIX.search(version)
    )
    if taken:
        raise ConfigError(
            f"{version!r} cannot be a version",
            hint="'index', 'key-…' and endings like .sqsh, .json or .linux-arm64 have a meaning in the store",
        )
    return Version(version)


def is_version(name: str) -> bool:
    """Whether the characters of a name are valid in a version or a channel."""
    return bool(_VERSION.fullmatch(name))


def is_channel(name: str) -> bool:
    """Whether the characters of a name are valid in a channel."""
    return bool(_CHANNEL.fullmatch(name))


def is_platform(name: str) -> bool:
    """Whether `name` has the form os/architecture."""
    return bool(_PLATFORM.fullmatch(name))


def is_of(name: str, version: str) -> bool:
    """Whether the record file of that stem is `version`'s and no longer version's, for a known platform."""
    return name == version or _PLATFORM_SUFFIX.sub("", name) == version


def check_channel(channel: str) -> str:
    """Give `channel` back when it can be one. Raises ConfigError."""
    if not _CHANNEL.fullmatch(channel) or channel in _RESERVED_VERSIONS or channel.startswith("key-"):
        raise ConfigError(
            f"{channel!r} is not a channel name",
            hint="use lower-case letters, digits, _ and -, beginning with a letter, at most 63 in all",
        )
    return channel


def check_platform(platform: str) -> str:
    """Give `platform` ("linux/amd64") back when it has the form os/architecture. Raises ConfigError."""
    if not _PLATFORM.fullmatch(platform):
        raise ConfigError(f"{platform!r} is not a platform", hint="use os/architecture, such as linux/arm64")
    return platform


def split_name(text: str) -> tuple[str, str]:
    """Take "image[:version|:channel]" apart; what is not said is the channel latest. Raises ConfigError."""
    image, colon, name = text.partition(":")
    check_image(image)
    if not colon:
        return image, DEFAULT_CHANNEL
    if not _VERSION.fullmatch(name):
        raise ConfigError(f"{text!r} is not IMAGE:VERSION", hint="write for example demo:v1.0 or demo:stable")
    return image, name


def stem(name: str, platform: str) -> str:
    """File name without ending of a version or channel: linux/amd64 has the bare name, others a suffix."""
    return name if platform == DEFAULT_PLATFORM else f"{name}.{platform.replace('/', '-')}"


def suggest(wanted: str, known: Iterable[str]) -> str:
    """A hint that names what exists and is spelled like `wanted`, or what exists at all."""
    names = sorted(known)
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(close) + "?"
    if names:
        shown = names[-8:]
        return "there is: " + ", ".join(shown) + (" …" if len(names) > len(shown) else "")
    return "nothing is published yet"
