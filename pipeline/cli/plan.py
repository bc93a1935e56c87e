"""What would run and why; what images.yaml may say; which digests the bases stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import options, output
from pipeline.errors import EXIT_PLAN_HAS_CHANGES

if TYPE_CHECKING:
    from pipeline.bases import BaseAnswer

Names = Annotated[list[str] | None, typer.Argument(help="Images; all of images.yaml if none is named.")]


def register(app: typer.Typer) -> None:
    """Add ``schema`` and ``lock`` to ``app``."""
    app.command()(schema)
    app.command()(lock)


def schema() -> None:
    """Print the JSON schema of images.yaml, for editors."""
    from pipeline.config.document import json_schema

    output.data_json(json_schema())


def lock(
    names: Names = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit with 10 if it would.")] = False,
    as_json: options.Json = False,
) -> None:
    """Write images.lock: which digest each base's tag stands for now."""
    from pipeline import bases
    from pipeline.config import load
    from pipeline.lock import read_lock, write_lock

    settings = load(config)
    specs = settings.select(names or ())
    held = read_lock(settings.lock_path)
    with bases.Clients(settings) as clients:
        answers = bases.ask(specs, held, clients)
    for answer in answers:
        if answer.problem is not None:
            raise answer.problem
    wanted = held.only((spec.base, spec.platform) for spec in settings.images.values())
    for answer in answers:
        if answer.now is not None:
            wanted = wanted.updated(answer.reference, answer.platform, answer.now)
    changed = wanted != held or not settings.lock_path.exists()
    if changed and not check:
        write_lock(settings.lock_path, wanted)
    if as_json:
        output.data_json([_as_json(answer) for answer in answers])
    else:
        for answer in answers:
            output.data(_line(answer))
    if changed and check:
        raise typer.Exit(EXIT_PLAN_HAS_CHANGES)


def _line(answer: BaseAnswer) -> str:
    name = f"{answer.reference} {answer.platform}"
    now = answer.now.digest if answer.now else None
    if not answer.moved:
        return f"{name}  {now}  unchanged"
    return f"{name}  {now}  " + (f"was {answer.locked.digest}" if answer.locked else "new")


def _as_json(answer: BaseAnswer) -> dict[str, object]:
    return {
        "base": str(answer.reference),
        "platform": str(answer.platform),
        "images": list(answer.images),
        "digest": str(answer.now.digest) if answer.now else None,
        "locked": str(answer.locked.digest) if answer.locked else None,
        "moved": answer.moved,
    }
