"""The verbs for the whole store: create, import, scrub, rescan, usage, sync."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import completion, options, output
from pipeline.cli.lease import lease
from pipeline.cli.metrics import metrics
from pipeline.cli.profile import attach
from pipeline.cli.prune import prune
from pipeline.cli.rebuild import rebuild
from pipeline.cli.scrub import scrub
from pipeline.cli.stores import configured_store, host_platform, look_up_store, open_store
from pipeline.cli.verbs import Verbs
from pipeline.errors import (
    EXIT_PLAN_HAS_CHANGES,
    ConfigError,
    FormatError,
    PublishError,
    SqshpipeError,
)
from pipeline.system.log import log
from pipeline.text import human_bytes

if TYPE_CHECKING:
    from pipeline.config.names import Version
    from pipeline.store.sync_source import SyncReport

store = Verbs("The shared folder: make it, care for it, copy it.")
store.add_typer(lease, name="lease")
store.command("attach-profile")(attach)


@store.command()
def create(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Default: --store, or the store of images.yaml.")
    ] = None,
    root: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
) -> None:
    """Make an empty store, once; a store that exists stays as it is. Prints its path.

    Example: sqshpipe store create /fsx/containers
    """
    opened = configured_store(folder or root, config)
    if not opened.create():
        output.note(f"{opened.root} is a store already and stays as it is")
    output.data_path(opened.root)


@store.command("import")
def import_files(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE…", help="A .sqsh that was made elsewhere; a folder or a tar of data."),
    ],
    name: Annotated[
        str | None,
        typer.Option("--as", metavar="IMAGE:VERSION", help="Name; default: from the file's name."),
    ] = None,
    root: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    platform: options.Platform = None,
    allow_external: options.AllowExternal = False,
    move: Annotated[
        bool, typer.Option("--move", help="Move the file instead of copying; same file system only.")
    ] = False,
    data: Annotated[
        bool, typer.Option("--data", help="It is data, also where it is a .sqsh or looks like an image.")
    ] = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Publish .sqsh files that were made elsewhere, or a folder or a tar of data; print the path of each.

    Records of .sqsh files say external and unscanned. Data (a dataset, a model) becomes a .sqsh that is
    mounted and never started. Example: sqshpipe store import wikitext2/ --as wikitext2:v1
    """
    from pipeline.cli.progress import ConsoleProgress
    from pipeline.release.publish import publish_file

    opened, platform = open_store(root, config), platform or host_platform()
    named, refused = _named(files, name)
    made, changes = [], False
    for file, image, version in named:
        if dry_run:
            there = opened.release(image, version, platform) is not None
            changes |= not there
            made.append({"file": str(file), "name": f"{image}:{version}", "present": there})
            continue
        try:
            with ConsoleProgress().stage("import") as task:
                release = publish_file(
                    file,
                    store=opened,
                    image=image,
                    version=version,
                    platform=platform,
                    data=data,
                    allow_external=allow_external,
                    move=move,
                    task=task,
                )
        except SqshpipeError as error:
            if len(files) == 1:
                raise
            refused.append(error)
            continue
        path = release.public_path
        if as_json:
            made.append({"file": str(file), "name": release.name, **release.as_json(), "path": str(path)})
        else:
            output.data_path(path)
    if as_json:
        output.data_json(made)
    elif dry_run:
        for row in made:
            output.data(f"{row['file']} -> {row['name']}" + ("  is there already" if row["present"] else ""))
    _fail(refused)
    if changes:
        raise typer.Exit(EXIT_PLAN_HAS_CHANGES)


def _named(
    files: list[Path], name: str | None
) -> tuple[list[tuple[Path, str, Version]], list[SqshpipeError]]:
    """(file, image, version) of each, and an error for each file that cannot be taken."""
    from pipeline.config.names import check_version, split_name
    from pipeline.convert.data import is_data
    from pipeline.store.adopt import guess_name

    if name is not None:
        if len(files) > 1:
            raise ConfigError(
                "several files cannot have one name", hint="import one file at a time with --as"
            )
        if ":" not in name:
            raise ConfigError(f"{name!r} names no version", hint=f"write --as {name}:v1.0")
        image, text = split_name(name)
        version = check_version(text)
    named: list[tuple[Path, str, Version]] = []
    refused: list[SqshpipeError] = []

    def look(file: Path) -> None:
        try:
            if not file.exists():
                raise ConfigError(f"{file} does not exist", hint="give the path of a .sqsh or of data")
            if name is None and is_data(file):
                raise ConfigError(f"the data {file} needs a name", hint="give --as NAME:VERSION")
            named.append((file, *((image, version) if name is not None else guess_name(file))))
        except (ConfigError, FormatError) as error:
            refused.append(error)

    for file in files:
        look(file)
    return named, refused


def _fail(refused: list[SqshpipeError]) -> None:
    """Print every error but the first, and raise that: the files that can be taken are taken."""
    for error in refused[1:]:
        output.failure(error)
    if refused:
        raise refused[0]


@store.command()
def rescan(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[IMAGE]…", help="Only these.", autocompletion=completion.images),
    ] = None,
    root: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    as_json: options.Json = False,
) -> None:
    """Scan and judge every release that resolves again; exit with 5 if one is rejected now.

    Example: sqshpipe store rescan --store /fsx/containers
    """
    from pipeline.bases.clients import Clients
    from pipeline.config.reading import load
    from pipeline.errors import ScanRejected
    from pipeline.scan import watch
    from pipeline.scan.judge import Judge
    from pipeline.scan.rescan import rescan as run

    images = tuple(names or ())
    opened = open_store(root, config)
    if config.is_file():
        settings = load(config, store=root)
        with Clients(settings) as clients:
            judge = Judge(client_for=clients, credentials=clients.credentials)
            results = run(opened, settings, images=images, judge=judge)
    else:
        results = run(opened, None, images=images, judge=Judge())
    watches = watch.of_releases(one.release for one in results)
    if as_json:
        days = {id(release): found.unwatched_from.isoformat() for release, found in watches}
        output.data_json([{**one.as_json(), "unwatched_from": days.get(id(one.release))} for one in results])
    else:
        for one in results:
            state = "yanked" if one.yanked else one.status
            output.data(
                f"{one.release.name}  {one.release.platform}  {state}" + (f"  {one.why}" if one.why else "")
            )
        for release, found in watches:
            output.data(found.sentence(release.name))
    bad = [one.release.name for one in results if one.status == "unacceptable"]
    if bad:
        raise ScanRejected(
            f"{len(bad)} published releases are no longer acceptable: {', '.join(bad)}",
            hint="release new versions with updated packages, or waive what is harmless",
        )


@store.command()
def usage(
    image: Annotated[
        str | None,
        typer.Argument(metavar="[IMAGE]", help="Only this image.", autocompletion=completion.images),
    ] = None,
    root: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    as_json: options.Json = False,
) -> None:
    """Show what each image and version costs on disk; totals count shared bytes once."""
    from pipeline.cli.tables import plain
    from pipeline.store.usage import usage as count

    found = count(open_store(root, config).layout)
    for sentence in found.broken:
        log.warning(sentence)
    costs = [cost for cost in found.costs if image in (None, cost.image)]
    if as_json:
        output.data_json({**dataclasses.asdict(found), "costs": [dataclasses.asdict(cost) for cost in costs]})
        return
    rows = [
        (f"{cost.image}:{cost.version}", human_bytes(cost.size), human_bytes(cost.own), cost.state)
        for cost in costs
    ]
    names = (name for name in found.images if image in (None, name))
    rows += [(name, human_bytes(found.images[name]), "-", "all versions") for name in names]
    rows += [("total", human_bytes(found.total), "-", "all images")] if image is None else []
    for line in plain(("RELEASE", "SIZE", "ONLY HERE", "STATE"), rows):
        output.data(line)


@store.command()
def sync(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A store's folder, or s3://bucket/prefix.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="As SRC; at least one of them is a folder.")],
    only: Annotated[
        list[str] | None, typer.Option("--only", help="IMAGE or IMAGE:VERSION; repeatable.")
    ] = None,
    channel: Annotated[
        list[str] | None, typer.Option("--channel", help="Set this channel of DST as at SRC; repeatable.")
    ] = None,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Copy the releases that are missing at DST; a copy that was interrupted is resumed.

    Example: sqshpipe store sync /fsx/containers s3://bucket/containers --only megatron-training
    """
    from pipeline.aws.s3 import S3Bucket
    from pipeline.cli.progress import ConsoleProgress
    from pipeline.store.sync import compare
    from pipeline.store.sync import sync as run

    config = options.find_config()
    places = [
        S3Bucket(text) if text.startswith("s3://") else look_up_store(Path(text), config)
        for text in (source, target)
    ]
    if dry_run:
        _print_missing(compare(places[0], places[1], names=only or ()), target, as_json=as_json)
        return
    with ConsoleProgress().stage("sync") as task:
        report = run(places[0], places[1], names=only or (), mirror_channels=channel or (), task=task)
    if as_json:
        output.data_json(dataclasses.asdict(report))
    else:
        for name in report.copied:
            output.data(name)
        log.info(
            f"{len(report.copied)} copied, {report.present} were there",
            sent=human_bytes(report.bytes_copied),
            reused=human_bytes(report.bytes_reused),
        )
    if report.pruned and not as_json:
        log.info(
            f"{len(report.pruned)} were pruned at {target} and stay so; --only IMAGE:VERSION copies one",
            releases=" ".join(report.pruned),
        )
    missing = [*report.refused, *report.broken]
    if missing:
        raise PublishError(
            f"not everything was copied: {'; '.join(missing[:3])}",
            hint="remove what is not a file of the store; "
            f"sqshpipe store rebuild --store {source} says what can be done about what cannot be read",
        )


def _print_missing(report: SyncReport, target: str, *, as_json: bool) -> None:
    for sentence in (*report.refused, *report.broken):
        log.warning("cannot be copied", why=sentence)
    if as_json:
        output.data_json(dataclasses.asdict(report))
    else:
        for name in report.copied:
            output.data(name)
        log.info(f"{len(report.copied)} would be copied to {target}, {report.present} are there")
    if report.copied:
        raise typer.Exit(EXIT_PLAN_HAS_CHANGES)


store.command()(metrics)
store.command()(prune)
store.command()(rebuild)
store.command()(scrub)
