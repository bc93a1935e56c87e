"""Leases: who uses a release, so that prune leaves its file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import options, output
from pipeline.cli.stores import host_platform, open_store
from pipeline.cli.verbs import Verbs
from pipeline.text import short

lease = Verbs("Leases: who uses a release, so that prune leaves its file.")


@lease.command()
def create(
    name: options.ReleaseName,
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    platform: options.Platform = None,
    hours: Annotated[float, typer.Option("--hours", help="For how long at most.")] = 24.0,
    as_json: options.Json = False,
) -> None:
    """Record that you use a release, so that prune leaves its file; prints the lease.

    Example: sqshpipe store lease create demo:v1.0 --hours 48
    """
    from pipeline.store import leases

    opened = open_store(store, config)
    release = opened.resolve(name, platform or host_platform())
    path = leases.take(opened.layout, release, seconds=hours * 3600)
    _print_path(path, as_json=as_json)


@lease.command("list")
def list_leases(
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    as_json: options.Json = False,
) -> None:
    """List the leases of the store."""
    from pipeline.cli.tables import plain
    from pipeline.store import leases

    present = leases.read_all(open_store(store, config).layout, warn=True)
    if as_json:
        output.data_json([dataclasses.asdict(one) for one in present])
        return
    rows = [(one.name, f"{one.image}:{one.version}", short(one.sha256), one.holder()) for one in present]
    for line in plain(("LEASE", "RELEASE", "SHA256", "HOLDER"), rows):
        output.data(line)


@lease.command()
def drop(
    lease_file: Annotated[Path, typer.Argument(metavar="LEASE", help="What `store lease create` printed.")],
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    as_json: options.Json = False,
) -> None:
    """End a lease before its time."""
    from pipeline.store import leases

    path = open_store(store, config).layout.leases / lease_file.name
    leases.drop(path)
    _print_path(path, as_json=as_json)


def _print_path(path: Path, *, as_json: bool) -> None:
    if as_json:
        output.data_json({"lease": str(path)})
    else:
        output.data(str(path))
