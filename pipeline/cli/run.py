"""``sqshpipe run``: a command in an image that all tasks of a node share."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from pipeline.cli import files, options
from pipeline.cli.files import Image, With, kind_of


def run(
    image: Image,
    command: Annotated[
        list[str] | None, typer.Argument(help="After --; default: what the image starts.")
    ] = None,
    store: options.Store = None,
    bind: Annotated[
        list[str] | None, typer.Option("--mount", "-m", help="/host/folder[:/inside[:rw]]; repeatable.")
    ] = None,
    data: files.Data = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", help="NAME=VALUE, or NAME to keep the job's; repeatable."),
    ] = None,
    entrypoint: Annotated[
        bool, typer.Option("--entrypoint", help="Run the image's entrypoint first.")
    ] = False,
    gpu: Annotated[bool, typer.Option("--gpu/--no-gpu", help="Show the host's GPU driver inside.")] = True,
    by: With = None,
) -> None:
    """Run a command in an image that all tasks of this node share."""
    from pipeline.node import run
    from pipeline.node.enter import Bind

    named = [each if "=" in each else f"{each}={os.environ.get(each, '')}" for each in env or ()]
    code = run.run(
        files.image(image, store),
        command or (),
        binds=[Bind.parse(each) for each in bind or ()],
        data=[(files.wanted(each, store), inside) for each, inside in files.mounted_data(data)],
        env=[(key, value) for key, _, value in (each.partition("=") for each in named)],
        entrypoint=entrypoint,
        gpu=gpu,
        kind=kind_of(by),
    )
    raise typer.Exit(code)
