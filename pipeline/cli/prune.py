"""``sqshpipe store prune``: hide releases that nobody needs, and delete hidden ones later."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import options, output
from pipeline.cli.stores import open_store
from pipeline.errors import EXIT_PLAN_HAS_CHANGES, ConfigError
from pipeline.system.log import log
from pipeline.text import human_bytes

if TYPE_CHECKING:
    from pipeline.store.prune import PruneReport
    from pipeline.store.retention import LiveJobs, Policy

WithoutSlurm = Annotated[
    bool, typer.Option("--no-slurm", help="No Slurm cluster uses this store: do not ask for its jobs.")
]
Keep = Annotated[
    int | None,
    typer.Option("--keep", help="Number of newest releases to keep; default: as in images.yaml, else 5."),
]


def duration(text: str, option: str) -> timedelta:
    """90m, 12h, 30d or 2w. Raises ConfigError naming the option."""
    from pipeline.config.quantities import parse_duration

    try:
        return parse_duration(text, zero=True)
    except ConfigError as error:
        raise ConfigError(f"{option}: {error.message}", hint=error.hint) from None


def prune(
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    keep: Keep = None,
    grace: Annotated[
        str | None,
        typer.Option(
            "--grace",
            help="Time that a release stays after its last channel; default: as in images.yaml, else 30d.",
        ),
    ] = None,
    delete_after: Annotated[
        str | None,
        typer.Option(
            "--delete-after",
            help="Time from hiding to deleting, longer than any job; default: as in images.yaml, else 14d.",
        ),
    ] = None,
    no_slurm: WithoutSlurm = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Hide releases that nobody needs, and delete those hidden long enough ago.

    Example: sqshpipe store prune --dry-run --store /fsx/containers
    """
    from pipeline.store.prune import no_jobs
    from pipeline.store.prune import prune as run
    from pipeline.store.retention import KEEP, WAIT

    opened = open_store(store, config)
    policy = _policy(
        config,
        keep=keep,
        named_grace=duration(grace, "--grace") if grace else None,
        delete_after=duration(delete_after, "--delete-after") if delete_after else None,
    )
    report = run(opened.layout, policy, no_jobs if no_slurm else ask_slurm, dry_run=dry_run)
    _print_report(report, dry_run=dry_run, as_json=as_json)
    actions = {verdict.action for verdict in report.verdicts}
    if dry_run and (report.files or not actions <= {KEEP, WAIT}):
        raise typer.Exit(EXIT_PLAN_HAS_CHANGES)


def ask_slurm() -> LiveJobs:
    """What Slurm's jobs use. Raises ToolError when it cannot be asked."""
    from pipeline.errors import ToolError
    from pipeline.slurm import client
    from pipeline.store.retention import LiveJobs

    if not client.installed():
        raise ToolError(
            "squeue is not installed here",
            hint="run it on a host of the cluster; --no-slurm where no cluster uses the store",
        )
    jobs = client.jobs()
    digests = frozenset(digest for job in jobs for digest in job.digests)
    return LiveJobs(digests=digests, ids=frozenset(job.id for job in jobs), cluster=client.cluster_name())


def _policy(
    config: Path, *, keep: int | None, named_grace: timedelta | None, delete_after: timedelta | None
) -> Policy:
    """What the options say, else images.yaml, else the defaults."""
    from pipeline.store.retention import Policy

    policy = Policy()
    if config.is_file():
        from pipeline.config.reading import load

        read = load(config)
        policy = Policy(
            per_image={name: spec.keep for name, spec in read.images.items()},
            named_grace=read.store.grace,
            delete_after=read.store.delete_after,
        )
    if keep is not None:
        policy = dataclasses.replace(policy, keep=keep, per_image={})
    if named_grace is not None:
        policy = dataclasses.replace(policy, named_grace=named_grace)
    if delete_after is not None:
        policy = dataclasses.replace(policy, delete_after=delete_after)
    return policy


def _print_report(report: PruneReport, *, dry_run: bool, as_json: bool) -> None:
    if report.unreachable:
        log.warning(f"nothing is hidden or deleted, since running jobs are not known: {report.unreachable}")
    for message in report.broken:
        log.warning(f"no bytes are deleted: {message}")
    if as_json:
        output.data_json(dataclasses.asdict(report))
        return
    for verdict in report.verdicts:
        output.data(f"{verdict.action:<6}  {verdict.image}:{verdict.version}  {verdict.reason}")
    for path, reason in report.files:
        output.data(f"{'remove':<6}  {path}  {reason}")
    for path, reason in report.kept:
        output.data(f"{'keep':<6}  {path}  {reason}")
    word = "would free" if dry_run else "freed"
    log.info(f"{word} {human_bytes(report.freed)} in {len(report.blobs)} files")
