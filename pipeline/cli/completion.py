"""What Tab offers: images, versions and channels of the store, images of images.yaml.

A shell asks while somebody types: nothing here prints, fails or asks the network, and the store's indexes are
read, never its records.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import typer

_IMAGE_LINE = re.compile(r"^  ([a-z0-9][a-z0-9._-]*):", re.MULTILINE)
_NAME = re.compile(r"[A-Za-z0-9._:/@-]+")
_ROOT_LINE = re.compile(r"^\s*(?:store:\s*\{)?\s*root:\s*[\"']?([^\"'}\s]+)", re.MULTILINE)


def releases(context: typer.Context, incomplete: str) -> list[str]:
    """image, then image:version and image:channel once a colon or a whole image is typed."""
    found: list[str] = []
    with contextlib.suppress(Exception):  # a half-typed line must never end in a traceback
        found = list(_releases(_root(context), incomplete))
    return _offered(found, incomplete)


def images(context: typer.Context, incomplete: str) -> list[str]:
    """Images of the store."""
    found: list[str] = []
    with contextlib.suppress(Exception):
        from pipeline.store.layout import Layout

        found = Layout(_root(context)).images()
    return _offered(found, incomplete)


def configured(context: typer.Context, incomplete: str) -> list[str]:
    """Images of images.yaml."""
    found: list[str] = []
    with contextlib.suppress(Exception):
        text = _config(context).read_text(encoding="utf-8")
        found = _IMAGE_LINE.findall(text.partition("\nimages:")[2])
    return _offered(found, incomplete)


def channels(context: typer.Context, incomplete: str) -> list[str]:
    """Channels of any image of the store."""
    found = {"latest", "stable"}
    with contextlib.suppress(Exception):
        from pipeline.store.store import Store

        store = Store(_root(context))
        found |= {channel for image in store.layout.images() for channel in store.state(image).channels}
    return _offered(sorted(found), incomplete)


def _offered(found: Iterable[str], incomplete: str) -> list[str]:
    """Names that begin with what is typed; the shell gets only characters that names can have."""
    return [name for name in found if name.startswith(incomplete) and _NAME.fullmatch(name)]


def _releases(root: Path, incomplete: str) -> Iterator[str]:
    from pipeline.store.layout import Layout
    from pipeline.store.store import Store

    image, colon, _ = incomplete.partition(":")
    known = Layout(root).images()
    if not colon and image not in known:
        yield from known
        return
    state = Store(root).state(image)
    if not colon:
        yield from known
    yield from (f"{image}:{channel}" for channel in sorted(state.channels))
    yield from (f"{image}:{version}" for version, one in state.newest_first() if one.resolvable())


def _config(context: typer.Context) -> Path:
    return Path(context.params.get("config") or os.environ.get("SQSHPIPE_CONFIG") or "images.yaml")


def _root(context: typer.Context) -> Path:
    """The store of --store, SQSHPIPE_STORE, else the root that images.yaml names, read without parsing it."""
    given = context.params.get("store") or os.environ.get("SQSHPIPE_STORE")
    if given:
        return Path(given)
    found = _ROOT_LINE.search(_config(context).read_text(encoding="utf-8"))
    return Path(found[1]) if found else Path("/nonexistent")
