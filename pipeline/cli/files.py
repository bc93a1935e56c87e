"""The .sqsh that an argument names: a release of the store, or a path."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import completion, options
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.node.image_file import ImageFile
    from pipeline.store.record import Release
    from pipeline.system.mount import Kind

Image = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE[:VERSION|:CHANNEL]",
        help="Or a path with a / in it.",
        autocompletion=completion.releases,
    ),
]

Data = Annotated[
    list[str] | None,
    typer.Option("--data", metavar="NAME[:VERSION]=/INSIDE", help="Data that is seen inside; repeatable."),
]

With = Annotated[
    str | None, typer.Option("--with", help="kernel or fuse; default: the kernel where allowed.")
]

_SUFFIXES = (".sqsh", ".squashfs", ".sqfs", ".img")
_INSIDE = re.compile(r"/[A-Za-z0-9._/@%+-]+")  # what every shell, pyxis and mount take as it is


def mounted_data(given: list[str] | None) -> list[tuple[str, str]]:
    """(NAME[:VERSION], folder inside) of each --data. Raises ConfigError."""
    found = []
    for text in given or ():
        name, _, inside = text.rpartition("=")
        if not name or not _INSIDE.fullmatch(inside):
            raise ConfigError(
                f"--data {text!r} is not NAME[:VERSION]=/INSIDE", hint="for example wikitext2:v1=/data"
            )
        found.append((name, inside))
    return found


def kind_of(text: str | None) -> Kind | None:
    """What --with names. Raises ConfigError."""
    kinds: dict[str | None, Kind | None] = {None: None, "kernel": "kernel", "fuse": "fuse"}
    if text in kinds:
        return kinds[text]
    raise ConfigError(f"--with {text!r} is neither kernel nor fuse")


def image(name: str, store: Path | None, digest: str | None = None) -> ImageFile:
    """As `wanted`, for a verb that starts or looks into an image. Raises ConfigError for data."""
    return wanted(name, store, digest, data=False)


def wanted(
    name: str, store: Path | None, digest: str | None = None, *, read: bool = True, data: bool = True
) -> ImageFile:
    """The .sqsh that IMAGE[:VERSION|:CHANNEL] or a path names; with `data` it may be data of the store.

    Where signatures are required it is the file of a signed release, and unless `read` is false its bytes
    have been compared on this machine.
    """
    from pipeline.node import signed
    from pipeline.node.image_file import ImageFile, image_file

    first, slash, _ = name.partition("/")
    if "#" in name or (slash and ":" in first):
        _refuse_reference(name)
    if slash:
        return signed.check_path(image_file(Path(name).expanduser(), digest))
    if name.lower().endswith(_SUFFIXES):
        raise ConfigError(f"{name[:200]!r} is not IMAGE[:VERSION]", hint=f"for the file write ./{name[:200]}")
    from pipeline.cli.stores import host_platform, look_up_store
    from pipeline.store import trust
    from pipeline.store.layout import RANGES

    opened = look_up_store(store, options.find_config())
    release = opened.resolve(name, host_platform())
    if not data:
        require_image(release)
    beside = opened.layout.attachments(release.image, release.version, release.platform)
    named = release.attachments
    if release.packs and RANGES not in named:
        from pipeline.store.sharing import with_attached  # loads much that others do not need

        named = with_attached(opened.layout, release, opened.required).attachments
    ranges = beside / RANGES if RANGES in named else None
    found = ImageFile(path=release.path, sha256=release.sha256, startup=beside, ranges=ranges)
    if read and trust.all_of(opened.required):
        signed.check_bytes(found)
    return found


def require_image(release: Release) -> None:
    """Raise ConfigError for a release of data, which cannot be started."""
    from pipeline.store.record import DATA

    if release.kind == DATA:
        raise ConfigError(
            f"{release.name} is data, not an image",
            hint=f"show it to an image (--data {release.name}=/data), or mount it: sqshpipe node mount",
        )


def _refuse_reference(name: str) -> None:
    """Raise ConfigError for a registry's or an engine's image, unless a file has that path."""
    from pipeline.convert.sources import what_to_write

    if not Path(name).exists():
        raise ConfigError(
            f"{name[:200]!r} is neither IMAGE[:VERSION] of the store nor the path of a .sqsh",
            hint=f"make a .sqsh of it with sqshpipe convert; as its source: {what_to_write(name)}",
        )


def is_release(text: str) -> bool:
    """Whether `text` can be IMAGE[:VERSION|:CHANNEL] rather than the path of a file."""
    from pipeline.config.names import split_name

    if "/" in text or text.lower().endswith(_SUFFIXES):
        return False
    try:
        split_name(text)
    except ConfigError:
        return False
    return True
