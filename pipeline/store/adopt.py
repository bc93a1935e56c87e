"""Guesses image and version of a .sqsh that was made by hand from its file name."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.config.names import Version, check_image, check_version
from pipeline.errors import ConfigError, SqshpipeError

_PARTS = re.compile(r"(?P<image>.+?)[-_@](?P<version>v?[0-9].*)")
_ENROOT = re.compile(r"(?P<image>.+)\+(?P<version>v?[0-9][^+]*)")  # as `enroot import` names its files


def guess_name(file: Path) -> tuple[str, Version]:
    """(image, version) of names such as nvidia+pytorch+24.01-py3.sqsh and megatron-training_v1.0.sqsh.

    A version begins with a digit, or with v and a digit: library+ubuntu.sqsh is an image without one. Raises
    ConfigError when the name does not say both.
    """
    name = re.sub(r"\.(sqsh|squashfs|sqfs|img)$", "", file.name)
    match = _ENROOT.fullmatch(name) or _PARTS.fullmatch(name)
    image, version = (match["image"], match["version"]) if match else (name, "")
    image = re.sub(r"[^a-z0-9._-]+", "-", image.lower()).strip("-._")
    try:
        return check_image(image), check_version(version)
    except SqshpipeError:
        raise ConfigError(
            f"the name of {file} does not say image and version", hint="give --as NAME:VERSION"
        ) from None
