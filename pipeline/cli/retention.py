"""What stays in the store and who uses it: lease, prune, store rebuild."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import options, output, profile
from pipeline.cli.store import Platform, host_platform, open_store
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.store.prune import Report
    from pipeline.store.retention import LiveJobs, Policy

WithoutSlurm = Annotated[
    bool, typer.Option("--no-slurm", help="No Slurm cluster uses this store: do not ask for its jobs.")
]
Keep = Annotated[int | None, typer.Option("--keep", help="Newest releases to keep; default: images.yaml, 5.")]

store_verbs = typer.Typer(help="Care of the whole store.", no_args_is_help=True)
store_verbs.command("attach-profile")(profile.attach)


def duration(text: str, option: str) -> timedelta:
    """90m, 12h, 30d or 2w. Raises ConfigError naming the option."""
    from pipeline.config.quantities import parse_duration

    try:
        return timedelta() if text == "0" else parse_duration(text)
    except ConfigError as error:
        raise ConfigError(f"{option}: {error.message}", hint=error.hint) from None


def lease(
    name: Annotated[
        str | None, typer.Argument(metavar="IMAGE[:VERSION|:CHANNEL]", help="What is used.")
    ] = None,
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    platform: Platform = None,
    hours: Annotated[float, typer.Option("--hours", help="For how long at most.")] = 24.0,
    drop: Annotated[Path | None, typer.Option("--drop", help="Give this lease back instead.")] = None,
    json: options.Json = False,
) -> None:
    """Say that you use a release, so that prune leaves its file; prints the lease, which --drop takes.

    Without a name: the leases that there are.
    """
    from pipeline.store import leases

    opened = open_store(store, config)
    if drop is not None:
        path = opened.layout.leases / drop.name
        leases.drop(path)
        _print_lease(path, json=json)
    elif name is not None:
        release = opened.resolve(name, platform or host_platform())
        _print_lease(leases.take(opened.layout, release, seconds=hours * 3600), json=json)
    else:
        present = leases.read_all(opened.layout, warn=True)
        if json:
            output.data_json([dataclasses.asdict(one) for one in present])
            return
        for one in present:
            output.data(f"{one.name}  {one.image}:{one.version}  {one.sha256[:12]}  {one.holder()}")


def _print_lease(path: Path, *, json: bool) -> None:
    if json:
        output.data_json({"lease": str(path)})
    else:
        output.data(str(path))


def prune(
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    keep: Keep = None,
    grace: Annotated[
        str | None,
        typer.Option(
            "--grace", help="How long a release outlives its last channel; default: images.yaml, 30d."
        ),
    ] = None,
    delete_after: Annotated[
        str | None,
        typer.Option(
            "--delete-after",
            help="How long bytes outlive hiding: the longest job; default: images.yaml, 14d.",
        ),
    ] = None,
    no_slurm: WithoutSlurm = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen, and why.")] = False,
    json: options.Json = False,
) -> None:
    """Hide releases that nobody needs, and delete those that were hidden long enough ago."""
    from pipeline.store.prune import no_jobs
    from pipeline.store.prune import prune as run

    opened = open_store(store, config)
    if not opened.root.is_dir():
        raise ConfigError(
            f"there is no store at {opened.root}", hint="name it with --store or SQSHPIPE_STORE"
        )
    policy = _policy(
        config,
        keep=keep,
        named_grace=duration(grace, "--grace") if grace else None,
        delete_after=duration(delete_after, "--delete-after") if delete_after else None,
    )
    report = run(opened.layout, policy, no_jobs if no_slurm else ask_slurm, dry_run=dry_run)
    _print_report(report, dry_run=dry_run, json=json)


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


def _print_report(report: Report, *, dry_run: bool, json: bool) -> None:
    import structlog

    if report.unreachable:
        structlog.get_logger().warning(
            f"nothing is hidden or deleted, since running jobs are not known: {report.unreachable}"
        )
    for message in report.broken:
        structlog.get_logger().warning(f"no bytes are deleted: {message}")
    if json:
        output.data_json(dataclasses.asdict(report))
        return
    for verdict in report.verdicts:
        output.data(f"{verdict.action:<6}  {verdict.image}:{verdict.version}  {verdict.reason}")
    for path, reason in report.files:
        output.data(f"{'remove':<6}  {path}  {reason}")
    for path, reason in report.kept:
        output.data(f"{'keep':<6}  {path}  {reason}")
    word = "would free" if dry_run else "freed"
    structlog.get_logger().info(f"{word} {report.freed / (1 << 20):,.1f} MiB in {len(report.blobs)} files")


_WAYS_OUT = (
    "no bytes are deleted in this store while a record or event cannot be read: restore the file from a "
    "backup, or use --restore IMAGE:VERSION, --tombstone IMAGE:VERSION where the bytes are gone, or "
    "--replace-event IMAGE:NUMBER"
)


@store_verbs.command()
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
    platform: Annotated[
        str, typer.Option("--platform", help="os/architecture of what is restored.")
    ] = "linux/amd64",
) -> None:
    """Write manifest.json, every index and every link anew from the records and events.

    A record or event that cannot be read is reported; the options say what becomes of it.
    """
    import structlog

    from pipeline.store import restore as ways_out

    opened = open_store(store, config)
    if not opened.root.is_dir():
        raise ConfigError(
            f"there is no store at {opened.root}", hint="name it with --store or SQSHPIPE_STORE"
        )
    for name in restore or ():
        ways_out.restore(opened.layout, name, platform)
    for name in tombstone or ():
        ways_out.bury(opened.layout, name, platform)
    for name in replace_event or ():
        ways_out.replace_event(opened.layout, name)
    broken = opened.rebuild()
    for message in broken:
        structlog.get_logger().warning(message)
    if broken:
        structlog.get_logger().warning(_WAYS_OUT)
    output.data_path(opened.layout.manifest)
