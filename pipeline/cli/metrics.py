"""``sqshpipe store metrics``: facts for Prometheus."""

from __future__ import annotations

from datetime import datetime, time, timezone
from typing import Annotated

import typer

from pipeline.cli import options, output
from pipeline.cli.stores import open_store
from pipeline.errors import ToolError


def metrics(
    root: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    file: options.OutputFile = None,
    ask_ecr: Annotated[
        bool, typer.Option("--ask-ecr", help="Also until when Inspector watches images that channels name.")
    ] = False,
) -> None:
    """Print facts about the store as a Prometheus text file.

    Example: sqshpipe store metrics --store /fsx/containers -o /var/lib/node_exporter/sqshpipe.prom
    """
    from pipeline.store.metrics import prometheus
    from pipeline.system import untrusted

    opened = open_store(root, config)
    unwatched = {}
    if ask_ecr:
        from pipeline.scan import watch

        named = [
            one
            for one in watch.published(opened, opened.images())
            if opened.state(one.image).channels_of(one.version)
        ]
        for release, found in watch.of_releases(named):
            unwatched[release.name] = datetime.combine(found.unwatched_from, time(), timezone.utc).timestamp()
    text = prometheus(opened, unwatched=unwatched)
    if file is None:
        output.document(text)
        return
    try:
        untrusted.replace_file(file, text.encode())
    except OSError as error:
        raise ToolError(f"cannot write {file}: {error.strerror}", hint="choose another --output") from error
