"""``sqshpipe store rebuild``: write the caches again, and what to do about records that cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import options, output
from pipeline.cli.stores import host_platform, open_store
from pipeline.errors import PublishError, SqshpipeError
from pipeline.system.log import log

if TYPE_CHECKING:
    from pipeline.store.store import Store

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
            "--restore", metavar="IMAGE:VERSION", help="Write its record again from its symlink and bytes."
        ),
    ] = None,
    tombstone: Annotated[
        list[str] | None,
        typer.Option(
            "--tombstone", metavar="IMAGE:VERSION", help="Its bytes are lost: only keep the version reserved."
        ),
    ] = None,
    replace_event: Annotated[
        list[str] | None,
        typer.Option(
            "--replace-event", metavar="IMAGE:NUMBER", help="Replace this event by one without effect."
        ),
    ] = None,
    layers: Annotated[
        bool,
        typer.Option("--layers", help="Make missing ranges and layers of releases again, from their images."),
    ] = False,
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
        log.warning(message)
    output.data_path(opened.layout.manifest)
    if broken:
        raise PublishError("not everything in the store can be read", hint=_WAYS_OUT)
    if layers:
        _make_layers(opened, store, config)


def _make_layers(opened: Store, root: Path | None, config: Path) -> None:
    """Make ranges and layers of each release that lacks them; print its name. Raises PublishError."""
    from pipeline.cli.progress import ConsoleProgress
    from pipeline.cli.recorded_images import recorded_images
    from pipeline.config.folders import cache_folder, scratch_folder
    from pipeline.convert.layers_again import Again

    failed = 0
    with recorded_images(config, root) as (settings, image), ConsoleProgress().stage("layers") as task:
        again = Again(
            store=opened,
            image=image,
            cache=cache_folder(config),
            scratch=scratch_folder(config),
            synced=settings is not None and settings.store.trust_synced,
        )
        for record in list(again.missing()):
            name = f"{record.image}:{record.version}"
            try:
                why_not = again.make(record, task)
            except SqshpipeError as error:
                why_not = error.headline
            if why_not:
                failed += 1
                log.warning(f"{name}: {why_not}")
            else:
                opened.refresh(record.image)
                output.data(f"{name}  {record.platform}")
    if failed:
        raise PublishError(
            f"the layers of {failed} releases could not be made",
            hint="without them they are no sources of layers and travel as whole files; nothing else is lost",
        )
