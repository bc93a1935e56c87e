"""``sqshpipe store scrub``: read releases back, and what is in them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import completion, options, output
from pipeline.cli.recorded_images import recorded_images
from pipeline.cli.stores import open_store
from pipeline.errors import RegistryError, VerificationError

if TYPE_CHECKING:
    from pipeline.store.scrub import Deep, ScrubReport
    from pipeline.store.store import Store


def scrub(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE[:VERSION]]…",
            help="Only these; default: everything.",
            autocompletion=completion.releases,
        ),
    ] = None,
    root: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    rate: Annotated[float, typer.Option("--rate", help="MB per second at most; 0: no limit.")] = 200.0,
    full: Annotated[
        bool, typer.Option("--full", help="Expand every byte too, and compare it with the layers beside it.")
    ] = False,
    against_image: Annotated[
        bool, typer.Option("--against-image", help="As --full, with the image in its registry.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Read releases back and compare size and sha256; exit with 7 for damage.

    A damaged release no longer resolves. Example: sqshpipe store scrub --store /fsx/containers --rate 100
    """
    from pipeline.cli.progress import ConsoleProgress
    from pipeline.store.scrub import scrub as run

    opened = open_store(root, config)
    with ConsoleProgress().stage("scrub") as task, contextlib.ExitStack() as closing:
        deep = None
        if full or against_image:
            deep = closing.enter_context(_deep(opened, root, config, against_image=against_image))
        report = run(
            opened.layout,
            names=names or (),
            bytes_per_second=rate * 1e6,
            required=opened.required,
            deep=deep,
            task=task,
        )
    if as_json:
        output.data_json(dataclasses.asdict(report))
    else:
        for line in _lines(report, deep):
            output.data(line)
    _raise(report)


@contextlib.contextmanager
def _deep(opened: Store, root: Path | None, config: Path, *, against_image: bool) -> Iterator[Deep]:
    """The comparison of content; images are asked for in the registry that their records name."""
    from pipeline.config.folders import cache_folder
    from pipeline.convert.recheck import Recheck
    from pipeline.store.scrub import Deep

    with recorded_images(config, root) as (settings, image):
        recheck = Recheck(
            layout=opened.layout,
            required=opened.required,
            synced=settings is not None and settings.store.trust_synced,
            image=image if against_image else None,
            cache=cache_folder(config),
        )
        yield Deep(name="image" if against_image else "full", compare=recheck)


def _lines(report: ScrubReport, deep: Deep | None) -> Iterator[str]:
    for damage in report.damaged:
        yield f"damaged  {damage.sha256}  {', '.join(damage.releases)}: {damage.what}"
    for message in report.broken:
        yield f"damaged  {message}"
    for message in report.unsigned:
        yield f"unsigned {message}"
    for message in report.by_sha256_only:
        yield f"sha256   checked by its sha256 only: {message}"
    for message in report.failed:
        yield f"failed   {message}"
    skipped = f", {report.skipped} read before the last run was cut short" if report.skipped else ""
    compared = f", the content of {report.compared} releases compared" if deep is not None else ""
    yield f"{report.checked} files read, {len(report.damaged)} damaged{compared}{skipped}"


def _raise(report: ScrubReport) -> None:
    if report.broken:
        raise VerificationError(
            f"{len(report.broken)} records and {len(report.damaged)} of {report.checked} files are damaged",
            hint="sqshpipe store rebuild says what can be done; for files, publish or sync the content again",
        )
    if report.damaged:
        names_of = sorted({name for damage in report.damaged for name in damage.releases})
        raise VerificationError(
            f"{len(report.damaged)} of {report.checked} files are damaged: {', '.join(names_of)}",
            hint="they no longer resolve; publish or sync the same content again, which repairs them; "
            "those with wrong content are released as new versions",
        )
    if report.unsigned:
        raise VerificationError(
            f"{len(report.unsigned)} releases have no signature that is required here",
            hint="they do not resolve; the owner of the key signs them with sqshpipe attest sign",
        )
    if report.failed:
        raise RegistryError(
            f"{len(report.failed)} releases could not be compared with their images",
            hint="their bytes are those that were published; --full compares without a registry",
        )
