"""Where layer packs and scratch are, for verbs with and without images.yaml.

The environment wins over images.yaml, and that over the defaults.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pipeline.system.scratch import CACHE_VARIABLE, SCRATCH_VARIABLE


def cache_from(environment: Mapping[str, str], given: str | None = None, folder: Path = Path()) -> Path:
    """The folder of layer packs and blobs: SQSHPIPE_CACHE, `given` below `folder`, or the user's cache."""
    default = Path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "sqshpipe"
    return _chosen(environment.get(CACHE_VARIABLE), given, folder, default)


def scratch_from(environment: Mapping[str, str], given: str | None = None, folder: Path = Path()) -> Path:
    """The folder for temporary files: SQSHPIPE_SCRATCH, `given` below `folder`, TMPDIR, or /var/tmp.

    Not /tmp: it is memory on many hosts.
    """
    default = Path(environment.get("TMPDIR") or "/var/tmp")  # noqa: S108 - folders in it are made by mkdtemp
    return _chosen(environment.get(SCRATCH_VARIABLE), given, folder, default)


def cache_folder(config: Path) -> Path:
    """What `cache_from` gives for images.yaml at `config`, if it exists. Raises ConfigError."""
    return _settings(config)[0]


def scratch_folder(config: Path) -> Path:
    """What `scratch_from` gives for images.yaml at `config`, if it exists. Raises ConfigError."""
    return _settings(config)[1]


def _settings(config: Path) -> tuple[Path, Path]:
    if not config.is_file():
        return cache_from(os.environ), scratch_from(os.environ)
    from pipeline.config import yamlfile

    value = yamlfile.read(config, missing_hint="").value
    named = value if isinstance(value, dict) else {}
    places = {key: text for key in ("cache", "scratch") if isinstance(text := named.get(key), str)}
    folder = config.resolve().parent
    return (
        cache_from(os.environ, places.get("cache"), folder),
        scratch_from(os.environ, places.get("scratch"), folder),
    )


def _chosen(override: str | None, given: str | None, folder: Path, default: Path) -> Path:
    if override:
        return Path(override).expanduser().absolute()
    return (folder / Path(given).expanduser()).absolute() if given else default.expanduser().absolute()
