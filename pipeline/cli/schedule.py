"""Timers that run ``sqshpipe refresh --rebuild``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.cli import options, output
from pipeline.cli.verbs import Verbs

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.bases.schedule import Schedule

schedule = Verbs("Timers that run `sqshpipe refresh --rebuild`.")


@schedule.command()
def systemd(
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    store: options.Store = None,
    registry: options.Registry = None,
) -> None:
    """Print a systemd service and timer.

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
    """Print a line for crontab.

    Example: sqshpipe schedule cron --store /fsx/containers
    """
    from pipeline.bases import schedule as rendering

    output.document(rendering.crontab(_schedule(config, store, registry)))


def _schedule(config: Path, store: Path | None, registry: str | None) -> Schedule:
    import getpass

    from pipeline.bases.schedule import Schedule
    from pipeline.system import self_command

    argv: list[str | Path] = [*self_command.installed("refresh", "--config"), config.absolute(), "--rebuild"]
    if store is not None:
        argv += ["--store", store]
    if registry:
        argv += ["--registry", registry]
    return Schedule(command=argv, folder=config.absolute().parent, user=getpass.getuser())
