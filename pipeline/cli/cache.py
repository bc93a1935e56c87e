"""Layer packs, which save unpacking and compressing: list them, delete the oldest."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli import options, output
from pipeline.cli.verbs import Verbs
from pipeline.errors import EXIT_PLAN_HAS_CHANGES, ConfigError
from pipeline.text import human_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.squashfs.cache import CachedPack, PackCache

cache = Verbs("Layer packs, which save unpacking and compressing.")


@cache.command("list")
def list_packs(config: options.ConfigFile = options.DEFAULT_CONFIG, as_json: options.Json = False) -> None:
    """List the layer packs, with the time of their last use."""
    packs = _packs(config)
    found = packs.packs()
    if as_json:
        output.data_json({"folder": str(packs.folder), "packs": [_as_json(pack) for pack in found]})
        return
    for line in _table(found):
        output.data(line)
    output.data(f"{_size(found)} in {len(found)} packs in {packs.folder}")


@cache.command()
def prune(
    max_size: Annotated[
        str | None,
        typer.Option("--max-size", help="Leave at most so much, the last used: 50G, or 0 for nothing."),
    ] = None,
    max_age: Annotated[
        str | None, typer.Option("--max-age", help="Delete what was not used for so long: 30d, 12h.")
    ] = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Delete layer packs that were not used lately; those in use stay.

    Example: sqshpipe cache prune --max-size 50G --max-age 30d
    """
    from pipeline.config.quantities import parse_duration, parse_size

    if max_size is None and max_age is None:
        raise ConfigError("it is not said what to delete", hint="give --max-size 50G, --max-age 30d, or both")
    packs = _packs(config)
    removed = packs.trim(
        now=datetime.now(timezone.utc),
        max_size=None if max_size is None else 0 if max_size == "0" else parse_size(max_size),
        max_age=None if max_age is None else parse_duration(max_age),
        dry_run=dry_run,
    )
    if as_json:
        output.data_json({"folder": str(packs.folder), "removed": [_as_json(pack) for pack in removed]})
    else:
        for line in _table(removed):
            output.data(line)
        done = "would be removed" if dry_run else "removed"
        output.data(f"{_size(removed)} in {len(removed)} packs {done}")
    if dry_run and removed:
        raise typer.Exit(EXIT_PLAN_HAS_CHANGES)


def _packs(config: Path) -> PackCache:
    from pipeline.config.folders import cache_folder
    from pipeline.convert.packing import pack_cache

    return pack_cache(cache_folder(config))


def _table(packs: list[CachedPack]) -> list[str]:
    from pipeline.cli.tables import plain

    states = ["in use" if pack.in_use else "" if pack.complete else "left over" for pack in packs]
    rows = [
        (human_bytes(pack.size), pack.used.strftime("%Y-%m-%d %H:%M"), state or "-", pack.path.name)
        for pack, state in zip(packs, states, strict=True)
    ]
    return plain(("SIZE", "LAST USED", "STATE", "PACK"), rows)


def _size(packs: list[CachedPack]) -> str:
    return human_bytes(sum(pack.size for pack in packs))


def _as_json(pack: CachedPack) -> dict[str, Any]:
    return {
        "path": str(pack.path),
        "size": pack.size,
        "used": pack.used.isoformat(),
        "in_use": pack.in_use,
        "complete": pack.complete,
    }
