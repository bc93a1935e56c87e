"""The .sqsh that a verb of a node is about."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError, FormatError
from pipeline.system import untrusted


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """A .sqsh to mount and the name by which callers of this node share the mount (64 hex digits).

    `startup` is the folder of the release's start-up profiles, `ranges` the file that says what it has in
    common with other releases; None for a file that is not a release, or has none.
    """

    path: Path
    sha256: str
    startup: Path | None = None
    ranges: Path | None = None


def image_file(path: Path, digest: str | None = None) -> ImageFile:
    """A .sqsh that is named by its path: shared by all who name the same file, unchanged, or give its digest.

    The bytes of a store are named by their digest, so their name is enough.

    Raises ConfigError when there is no such file, FormatError when it is no squashfs.
    """
    try:
        # A symlink is followed: releases and channels are symlinks. A pipe or a device is not waited for.
        with os.fdopen(untrusted.open_regular(path, follow=True), "rb") as file:
            magic, found = file.read(4), os.fstat(file.fileno())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if magic != b"hsqs":
        raise FormatError(f"{path} is not a squashfs file")
    resolved = path.resolve()
    digest = digest or (resolved.stem if resolved.parent.name == "sha256" else None)
    if digest is not None and re.fullmatch(r"[0-9a-f]{64}", digest):
        return ImageFile(path=resolved, sha256=digest)
    identity = f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns}"
    return ImageFile(path=resolved, sha256=hashlib.sha256(identity.encode()).hexdigest())
