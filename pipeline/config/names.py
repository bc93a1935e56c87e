"""Names that people give: images, versions, channels.

An image's name is a folder in the store and the last component of a repository; a version is a file name in
that folder and a registry tag. So both keep to what file systems and the distribution spec (tag and name
grammar) allow together. Channels and versions never share a name: a channel moves, a version does not.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable

from pipeline.errors import ConfigError

DEFAULT_CHANNELS = ("latest", "stable")

_IMAGE = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_RESERVED_IMAGES = frozenset({"blobs", "leases", "manifest.json"})
_RESERVED_VERSIONS = frozenset({"index", "manifest"})
_KEY_PREFIX = "key-"


def nearest(word: str, known: Iterable[str]) -> str:
    """``did you mean base?``, or an empty text when nothing known is close to ``word``."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else ""


def check_image(name: str) -> str:
    """``name`` if it can be a folder and a repository component; raises ConfigError otherwise."""
    if not _IMAGE.fullmatch(name) or len(name) > 128:
        raise ConfigError(
            f"{name!r} is not an image name",
            hint="use lower case letters, digits and single . _ - between them, 128 characters at most",
        )
    if name in _RESERVED_IMAGES:
        raise ConfigError(f"{name!r} cannot be an image name: the store uses it", hint="choose another name")
    return name


def check_channel(name: str) -> str:
    """``name`` if it can be a channel; raises ConfigError otherwise."""
    return _check_tag(name, "channel")


def check_version(version: str, channels: Collection[str] = ()) -> str:
    """``version`` if it can be a registry tag and a file name and is no channel; ConfigError otherwise."""
    if version in {*DEFAULT_CHANNELS, *channels}:
        raise ConfigError(
            f"{version!r} is a channel, not a version",
            hint=f"publish a version such as v1.0, then: sqshpipe promote NAME:v1.0 {version}",
        )
    return _check_tag(version, "version")


def _check_tag(text: str, word: str) -> str:
    if not _TAG.fullmatch(text) or text.endswith((".json", ".sqsh")) or text in _RESERVED_VERSIONS:
        raise ConfigError(
            f"{text!r} is not a {word}",
            hint="use letters, digits, then also . _ -, 128 characters at most, no .json or .sqsh at the end",
        )
    if text.startswith(_KEY_PREFIX):
        raise ConfigError(f"{text!r} cannot be a {word}: tags with {_KEY_PREFIX} are the build keys")
    return text
