"""Timers for refresh, prune, scrub, rescan, report and metrics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import options, output
from pipeline.cli.verbs import Verbs

if TYPE_CHECKING:
    from pipeline.bases.schedule import Schedule

schedule = Verbs("Timers for refresh, prune, scrub, rescan, report and metrics.")

Metrics = Annotated[
    Path | None,
    typer.Option(
        "--metrics", metavar="FILE", help="Also write facts for Prometheus there; node_exporter reads *.prom."
    ),
]


@schedule.command()
def systemd(
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    store: options.Store = None,
    registry: options.Registry = None,
    metrics: Metrics = None,
) -> None:
    """Print systemd services and timers.

    Example: sqshpipe schedule systemd --store /fsx/containers
    """
    from pipeline.bases import schedule as rendering

    output.document(rendering.systemd(_schedule(config, store, registry, metrics)))


@schedule.command()
def cron(
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    store: options.Store = None,
    registry: options.Registry = None,
    metrics: Metrics = None,
) -> None:
    """Print lines for a crontab.

    Example: sqshpipe schedule cron --store /fsx/containers
    """
    from pipeline.bases import schedule as rendering

    output.document(rendering.crontab(_schedule(config, store, registry, metrics)))


def _schedule(config: Path, store: Path | None, registry: str | None, metrics: Path | None) -> Schedule:
    from pipeline.bases.schedule import Schedule
    from pipeline.store.events import user_name
    from pipeline.system import self_command

    return Schedule(
        program=self_command.installed(),
        config=config.absolute(),
        user=user_name(),
        store=store.absolute() if store else None,
        registry=registry or "",
        metrics=metrics.absolute() if metrics else None,
    )
