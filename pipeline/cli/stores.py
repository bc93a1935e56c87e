"""Which store a verb works with."""

from __future__ import annotations

import platform as machine
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli import options
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.config.types import StoreSettings
    from pipeline.store.store import Store


def open_store(root: Path | None, config: Path | None = None) -> Store:
    """The store of --store or SQSHPIPE_STORE, else of images.yaml.

    Raises ConfigError when neither is given, PublishError when there is no store at that place.
    """
    opened = configured_store(root, config)
    opened.require()
    return opened


def configured_store(root: Path | None, config: Path | None = None) -> Store:
    """As `open_store`, whether the store is there or not: for the verb that creates it."""
    from pipeline.store.store import Store

    config = config or options.find_config()
    if not config.is_file():
        if root is not None:
            return Store(root)
        raise ConfigError(
            "no store is given", hint="use --store DIR or SQSHPIPE_STORE, or run it beside an images.yaml"
        )
    from pipeline.attest.required import store_of

    return store_of(load_settings(config, root), config)


def look_up_store(root: Path | None, config: Path) -> Store:
    """The store for reading only: images.yaml is not read when the root is known without it.

    It is read where it may require signatures.
    """
    from pipeline.store.store import Store

    if root is None or (config.is_file() and b"require_signature" in config.read_bytes()):
        return open_store(root, config)
    opened = Store(root)
    opened.require()
    return opened


def load_settings(config: Path, root: Path | None = None) -> StoreSettings:
    """What images.yaml says of the store. Raises ConfigError."""
    from pipeline.config.reading import load

    return load(config, store=root).store


def host_platform() -> str:
    """This machine as a platform."""
    architecture = machine.machine()
    return "linux/" + {"x86_64": "amd64", "aarch64": "arm64"}.get(architecture, architecture)


def named_root(store: Path | None) -> Path:
    """The store that --store or SQSHPIPE_STORE names, absolute. Raises ConfigError when neither does."""
    if store is None:
        raise ConfigError("no store is named", hint="give --store DIR or set SQSHPIPE_STORE")
    return store.absolute()
