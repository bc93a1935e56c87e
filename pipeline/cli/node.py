"""Verbs that run on a node: mount, unmount, run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import completion, options, output
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.node.run import ImageFile
    from pipeline.system.mount import Kind

Image = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE[:VERSION|:CHANNEL]",
        help="Or a path with a / in it.",
        autocompletion=completion.releases,
    ),
]
HolderPid = Annotated[
    int | None, typer.Option("--holder-pid", help="The process that holds the mount; default: the caller.")
]
Job = Annotated[
    str | None, typer.Option("--job", help="Held by this Slurm job until its epilog, not by a process.")
]
With = Annotated[
    str | None, typer.Option("--with", help="kernel or fuse; default: the kernel where allowed.")
]


def wanted(name: str, store: Path | None, digest: str | None = None) -> ImageFile:
    """The .sqsh that IMAGE[:VERSION|:CHANNEL] or a path names."""
    from pipeline.node.run import ImageFile, image_file

    first, slash, _ = name.partition("/")
    if "#" in name or (slash and ":" in first):
        _refuse_reference(name)
    if slash:
        return image_file(Path(name), digest)
    from pipeline.cli.store import host_platform, open_store

    opened = open_store(store)
    release = opened.resolve(name, host_platform())
    startup = opened.layout.attachments(release.image, release.version, release.platform)
    return ImageFile(path=release.path, sha256=release.sha256, startup=startup)


def _refuse_reference(name: str) -> None:
    """Raise ConfigError for a registry's or an engine's image, unless a file has that path."""
    from pipeline.convert.sources import what_to_write

    if not Path(name).exists():
        raise ConfigError(
            f"{name[:200]!r} is neither IMAGE[:VERSION] of the store nor the path of a .sqsh",
            hint=f"make a .sqsh of it with sqshpipe convert; as its source: {what_to_write(name)}",
        )


def _kind(text: str | None) -> Kind | None:
    kinds: dict[str | None, Kind | None] = {None: None, "kernel": "kernel", "fuse": "fuse"}
    if text in kinds:
        return kinds[text]
    raise ConfigError(f"--with {text!r} is neither kernel nor fuse")


def mount(
    image: Image,
    store: options.Store = None,
    holder_pid: HolderPid = None,
    job: Job = None,
    digest: Annotated[str | None, typer.Option("--digest", help="sha256 of a file given by path.")] = None,
    by: With = None,
    json: options.Json = False,
) -> None:
    """Mount an image once on this node, count the caller, and print the folder.

    The mount stays until every holder has called `unmount` or has ended.
    """
    from pipeline.node import prefetch, run, shared_mount

    holder = shared_mount.job_holder(job) if job else run.holder_for_caller(holder_pid)
    found = wanted(image, store, digest)
    shared = shared_mount.acquire(found.path, found.sha256, holder, kind=_kind(by))
    prefetch.begin(found, holder)
    if json:
        output.data_json(
            {"folder": str(shared.root), "file": str(found.path), "by": shared.kind, "device": shared.device}
        )
    else:
        output.data_path(shared.root)


def unmount(
    image: Annotated[str | None, typer.Argument(help="As given to mount; not needed with --job.")] = None,
    store: options.Store = None,
    holder_pid: HolderPid = None,
    job: Job = None,
) -> None:
    """Count the caller no longer; the last one unmounts. Also clears away what killed callers left."""
    from pipeline.node import prefetch, run, shared_mount

    if image is not None:
        holder = shared_mount.job_holder(job) if job else run.holder_for_caller(holder_pid)
        prefetch.end(holder)
        shared_mount.release(wanted(image, store).sha256, holder)
    elif job:
        prefetch.end(shared_mount.job_holder(job))
        shared_mount.release_job(job)
    else:
        shared_mount.clear(shared_mount.node_folder())


def run(
    image: Image,
    command: Annotated[
        list[str] | None, typer.Argument(help="After --; default: what the image starts.")
    ] = None,
    store: options.Store = None,
    bind: Annotated[
        list[str] | None, typer.Option("--mount", "-m", help="/host/folder[:/inside[:rw]]; repeatable.")
    ] = None,
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
    """Run a command in an image that all tasks of this node share, with the image's environment."""
    from pipeline.node import run
    from pipeline.node.enter import Bind

    named = [each if "=" in each else f"{each}={os.environ.get(each, '')}" for each in env or ()]
    code = run.run(
        wanted(image, store),
        command or (),
        binds=[Bind.parse(each) for each in bind or ()],
        env=[(key, value) for key, _, value in (each.partition("=") for each in named)],
        entrypoint=entrypoint,
        gpu=gpu,
        kind=_kind(by),
    )
    raise typer.Exit(code)
