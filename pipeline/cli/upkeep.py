"""Care of what is published: scrub, du, adopt, sync."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import options, output
from pipeline.cli.store import AllowExternal, open_store
from pipeline.errors import ConfigError, PublishError, VerificationError

Names = Annotated[
    list[str] | None, typer.Argument(metavar="[IMAGE[:VERSION]]…", help="Only these; default: everything.")
]


def scrub(
    names: Names = None,
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    rate: Annotated[float, typer.Option("--rate", help="At most so many MB a second; 0: freely.")] = 200.0,
    json: options.Json = False,
) -> None:
    """Read releases back and compare size and sha256; what is damaged no longer resolves, and the exit
    code is 7.
    """
    from pipeline.cli.progress import Teller
    from pipeline.store.scrub import scrub as run

    opened = open_store(store, config)
    with Teller().stage("scrub") as meter:
        report = run(opened.layout, names=names or (), bytes_per_second=rate * 1e6, meter=meter)
    if json:
        output.data_json(dataclasses.asdict(report))
    else:
        for damage in report.damaged:
            output.data(f"damaged  {damage.sha256}  {', '.join(damage.releases)}: {damage.what}")
        for message in report.broken:
            output.data(f"damaged  {message}")
        skipped = f", {report.skipped} read before the last run was cut short" if report.skipped else ""
        output.data(f"{report.checked} files read, {len(report.damaged)} damaged{skipped}")
    if report.broken:
        raise VerificationError(
            f"{len(report.broken)} records and {len(report.damaged)} of {report.checked} files are damaged",
            hint="sqshpipe store rebuild says what can be done; for files, publish or sync the content again",
        )
    if report.damaged:
        names_of = sorted({name for damage in report.damaged for name in damage.releases})
        raise VerificationError(
            f"{len(report.damaged)} of {report.checked} files are damaged: {', '.join(names_of)}",
            hint="they no longer resolve; publish or sync the same content again, which mends them",
        )


def du(
    image: Annotated[str | None, typer.Argument(help="Only this image.")] = None,
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    json: options.Json = False,
) -> None:
    """What each image and version costs; bytes that several share are counted once in the totals."""
    from pipeline.store.usage import usage

    found = usage(open_store(store, config).layout)
    for sentence in found.broken:
        output.log().warning(sentence)
    costs = [cost for cost in found.costs if image in (None, cost.image)]
    if json:
        output.data_json({**dataclasses.asdict(found), "costs": [dataclasses.asdict(cost) for cost in costs]})
        return
    for cost in costs:
        output.data(
            f"{_mib(cost.size)}  {_mib(cost.own)} of its own  {cost.image}:{cost.version}  {cost.state}"
        )
    for name, total in found.images.items():
        if image in (None, name):
            output.data(f"{_mib(total)}  {name}")
    if image is None:
        output.data(f"{_mib(found.total)}  total")


def _mib(size: int) -> str:
    return f"{size / (1 << 20):>12,.1f} MiB"


def adopt(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Hand-made .sqsh files.")],
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    image: Annotated[str | None, typer.Option("--image", help="Instead of what the file name says.")] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="Instead of what the file name says.")] = None,
    platform: Annotated[str, typer.Option("--platform", help="os/architecture.")] = "linux/amd64",
    allow_external: AllowExternal = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be called what.")] = False,
) -> None:
    """Take .sqsh files that exist already in as releases. The files themselves stay where they are."""
    from pipeline.cli.progress import Teller
    from pipeline.release.publish import publish_external
    from pipeline.store.adopt import guess_name

    if len(files) > 1 and tag is not None and image is not None:
        raise ConfigError("several files cannot have one name", hint="adopt one file at a time")
    opened = open_store(store, config)
    plan = []
    for file in files:
        guessed = (image, tag) if image and tag else guess_name(file)
        plan.append((file, image or guessed[0] or "", tag or guessed[1] or ""))
    for file, name, version in plan:
        if dry_run:
            output.data(f"{file} -> {name}:{version}")
            continue
        with Teller().stage("adopt") as meter:
            release = publish_external(
                file,
                store=opened,
                image=name,
                version=version,
                platform=platform,
                allow_external=allow_external,
                meter=meter,
            )
        output.data(f"{file} -> {release.public_path}")


def sync(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A store's folder, or s3://bucket/prefix.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="Likewise; one of them is a folder.")],
    only: Annotated[
        list[str] | None, typer.Option("--only", help="IMAGE or IMAGE:VERSION; repeatable.")
    ] = None,
    channel: Annotated[
        list[str] | None, typer.Option("--channel", help="It will name at DST what it names at SRC.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Copy the releases that are missing at DST: verified, gone on from where a copy was cut, records
    last.
    """
    from pipeline.aws.s3 import S3Bucket
    from pipeline.cli.progress import Teller
    from pipeline.store.sync import parse_place
    from pipeline.store.sync import sync as run

    places = [parse_place(text, S3Bucket) for text in (source, target)]
    with Teller().stage("sync") as meter:
        report = run(places[0], places[1], names=only or (), mirror_channels=channel or (), meter=meter)
    import structlog

    if json:
        output.data_json(dataclasses.asdict(report))
    else:
        for name in report.copied:
            output.data(name)
        structlog.get_logger().info(
            f"{len(report.copied)} copied, {report.present} were there",
            sent=_mib(report.bytes_copied),
            reused=_mib(report.bytes_reused),
        )
    if report.pruned and not json:
        structlog.get_logger().info(
            f"{len(report.pruned)} were pruned at {target} and stay so; --only IMAGE:VERSION brings one back",
            releases=" ".join(report.pruned),
        )
    missing = [*report.refused, *report.broken]
    if missing:
        raise PublishError(
            f"not everything was copied: {'; '.join(missing[:3])}",
            hint="remove what is no file of the store; "
            f"sqshpipe store rebuild --store {source} says what can be done about what cannot be read",
        )
