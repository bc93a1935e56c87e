"""Timers for refresh, prune, scrub, rescan and report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.cli import options, output
from pipeline.cli.verbs import Verbs

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.bases.schedule import Schedule

schedule = Verbs("Timers for refresh, prune, scrub, rescan and report.")


@schedule.command()
def systemd(
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    store: options.Store = None,
    registry: options.Registry = None,
) -> None:
    """Print systemd services and timers.

    Example: sqshpipe schedule systemd --store /fsx/containers
    """
    from pipeline.bases import schedule as rendering

    output.document(rendering.systemd(_schedule(config, store, registry)))


@schedule.command()
def cron(
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    store: options.Store = None,
    registry: options.Registry = None,
) -> None:
    """Print lines for a crontab.

    Example: sqshpipe schedule cron --store /fsx/containers
    """
    from pipeline.bases import schedule as rendering

    output.document(rendering.crontab(_schedule(config, store, registry)))


def _schedule(config: Path, store: Path | None, registry: str | None) -> Schedule:
    import getpass

    from pipeline.bases.schedule import Schedule
    from pipeline.system import self_command

    return Schedule(
        program=self_command.installed(),
        config=config.absolute(),
        user=getpass.getuser(),
        store=store.absolute() if store else None,
        registry=registry or "",
    )
