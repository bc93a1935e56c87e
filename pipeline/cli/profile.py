"""Start-up profiles: node profile records one, store attach-profile puts it beside a release."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import files, options, output
from pipeline.cli.files import Image
from pipeline.errors import ConfigError


def record(
    image: Image,
    command: Annotated[
        list[str], typer.Argument(help="After --: what starts, for example python -c 'import torch'.")
    ],
    store: options.Store = None,
    file: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the profile here; default: attach it to the release."),
    ] = None,
    digest: Annotated[
        str | None, typer.Option("--digest", help="sha256 of a file given by path; default: it is read.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Run a command in an image and record which ranges of the .sqsh its start reads.

    Prints where the profile is. Only who publishes attaches it; others use -o and send the file to them.
    """
    from pipeline.node import profile as profiling
    from pipeline.store import profiles
    from pipeline.store.publish_steps import hash_file
    from pipeline.system import untrusted

    if file is None and ("/" in image or "#" in image):
        raise ConfigError(f"{image[:200]!r} is not a release of the store", hint="give -o FILE")
    found = files.image(image, store, digest)
    if "/" in image and not digest:
        found = replace(found, sha256=hash_file(found.path))
    recorded = profiling.record(found, command, on_line=output.note)
    if recorded.done.returncode != 0:
        raise typer.Exit(recorded.done.returncode)
    made = recorded.profile
    if file is None:
        from pipeline.cli.stores import host_platform, open_store

        opened = open_store(store)
        release = opened.resolve(image, host_platform())
        folder = opened.layout.attachments(release.image, release.version, release.platform)
        file = folder / profiles.attach(opened.layout, release, made)
    else:
        untrusted.replace_file(file, profiles.to_bytes(made))
    _print(file, made.bytes_read, len(made.ranges), made.size, as_json=as_json)


def attach(
    name: Annotated[str, typer.Argument(metavar="IMAGE:VERSION", help="A release.")],
    file: Annotated[Path, typer.Argument(help="What node profile -o wrote, for this version or another.")],
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    platform: options.Platform = None,
    as_json: options.Json = False,
) -> None:
    """Put a start-up profile beside a release, so that nodes read ahead what a start needs.

    A profile of another version is resolved for this one: files that are stored otherwise are left out.
    """
    from pipeline.cli.stores import host_platform, open_store
    from pipeline.store import profiles

    try:
        given = profiles.read(file)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"there is no {file}", hint="sqshpipe node profile IMAGE -o FILE -- CMD") from None
    opened = open_store(store, config)
    release = opened.resolve(name, platform or host_platform())
    made = profiles.attach(opened.layout, release, given)
    found = profiles.newest(opened.layout, release) or given
    folder = opened.layout.attachments(release.image, release.version, release.platform)
    _print(folder / made, found.bytes_read, len(found.ranges), found.size, as_json=as_json)


def _print(path: Path, read: int, ranges: int, size: int, *, as_json: bool) -> None:
    if as_json:
        output.data_json({"path": str(path), "bytes": read, "ranges": ranges, "size": size})
    else:
        output.note(f"{read / 1e6:.1f} of {size / 1e6:.1f} MB in {ranges} ranges")
        output.data_path(path)
