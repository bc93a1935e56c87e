"""``sqshpipe store rebuild``: write the caches again, and what to do about records that cannot be read."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli import options, output
from pipeline.cli.stores import host_platform, open_store
from pipeline.errors import PublishError

_WAYS_OUT = (
    "no bytes are deleted in this store while a record or event cannot be read: restore the file from a "
    "backup, or use --restore IMAGE:VERSION, --tombstone IMAGE:VERSION where the bytes are gone, or "
    "--replace-event IMAGE:NUMBER"
)


def rebuild(
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    restore: Annotated[
        list[str] | None,
        typer.Option(
            "--restore", metavar="IMAGE:VERSION", help="Write its record anew from its symlink and bytes."
        ),
    ] = None,
    tombstone: Annotated[
        list[str] | None,
        typer.Option(
            "--tombstone", metavar="IMAGE:VERSION", help="Its bytes are gone: only keep the version taken."
        ),
    ] = None,
    replace_event: Annotated[
        list[str] | None,
        typer.Option(
            "--replace-event", metavar="IMAGE:NUMBER", help="Put an event without effect in its place."
        ),
    ] = None,
    platform: options.Platform = None,
) -> None:
    """Write manifest.json, all indexes and symlinks again from records and events.

    A record or event that cannot be read is reported; the options say what becomes of it.
    """
    from pipeline.store import restore as ways_out

    opened = open_store(store, config)
    for name in restore or ():
        ways_out.restore(opened.layout, name, platform or host_platform())
    for name in tombstone or ():
        ways_out.bury(opened.layout, name, platform or host_platform())
    for name in replace_event or ():
        ways_out.replace_event(opened.layout, name)
    broken = opened.rebuild()
    for message in broken:
        output.log().warning(message)
    output.data_path(opened.layout.manifest)
    if broken:
        raise PublishError("not everything in the store can be read", hint=_WAYS_OUT)
