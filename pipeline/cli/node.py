"""A node of the cluster: what is put on it, whether an image fits it, and mounts that its tasks share."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import options, output
from pipeline.cli.cluster import write_out
from pipeline.cli.files import Image, wanted
from pipeline.cli.prewarm import prewarm, warm_here
from pipeline.cli.profile import record
from pipeline.cli.stores import named_root, open_store
from pipeline.cli.verbs import Verbs
from pipeline.errors import ConfigError, VerificationError

if TYPE_CHECKING:
    from pipeline.system.mount import Kind

node = Verbs("A node of the cluster: set it up, check it, warm it, mount on it.")
node.command()(prewarm)
node.command("profile")(record)
node.command("warm-here", hidden=True)(warm_here)

HolderPid = Annotated[
    int | None, typer.Option("--holder-pid", help="The process that holds the mount; default: the caller.")
]
Job = Annotated[
    str | None, typer.Option("--job", help="Held by this Slurm job until its epilog, not by a process.")
]
With = Annotated[
    str | None, typer.Option("--with", help="kernel or fuse; default: the kernel where allowed.")
]


@node.command()
def install(
    prefix: Annotated[Path, typer.Option("--prefix", help="Where on this node; PREFIX/bin/pyxis-importer.")],
    store: options.Store = None,
    registry: Annotated[
        list[str] | None,
        typer.Option(
            "--image-registry", help="HOST/PREFIX whose repositories are images of the store; repeatable."
        ),
    ] = None,
    missing: Annotated[
        str,
        typer.Option("--missing", help="For what is not published: refuse, or import (enroot, once a node)."),
    ] = "refuse",
    local: Annotated[
        Path | None, typer.Option("--local", help="Node-local folder of prewarmed copies (NVMe).")
    ] = None,
    state: Annotated[
        Path, typer.Option("--state", help="Node-local folder for marks and imported images.")
    ] = Path("/var/lib/sqshpipe"),
    trusted_uid: Annotated[
        list[int] | None,
        typer.Option("--trusted-uid", help="Whose local copies count, besides root's; repeatable."),
    ] = None,
    leases: Annotated[
        Path | None, typer.Option("--leases", help="Where leases go, if not STORE/leases.")
    ] = None,
    cluster_name: Annotated[str, typer.Option("--cluster-name", help="For the leases.")] = "",
    tool: Annotated[
        Path | None,
        typer.Option("--tool", help="Where sqshpipe itself goes, such as a shared folder; default: PREFIX."),
    ] = None,
    importer_only: Annotated[
        bool, typer.Option("--importer-only", help="Leave sqshpipe itself out.")
    ] = False,
    enroot: Annotated[str, typer.Option("--enroot", help="The enroot to import with.")] = "enroot",
    verify: Annotated[
        bool, typer.Option("--verify", help="Check each file's whole sha256, once a node and digest.")
    ] = False,
) -> None:
    """Put the pyxis importer and sqshpipe on this node; print the line for plugstack.conf."""
    from pipeline.node.install import ImporterSettings, plugstack_line
    from pipeline.node.install import install as put

    root = named_root(store)
    program = put(
        ImporterSettings(
            store=root,
            registries=tuple(registry or ()),
            missing=missing,
            enroot=enroot,
            state=state.absolute(),
            local=local.absolute() if local else None,
            trusted_uids=tuple(dict.fromkeys([0, *(trusted_uid or ())])),
            verify=verify,
            cluster=cluster_name,
            leases=leases.absolute() if leases else None,
        ),
        prefix,
    )
    if not importer_only:
        from pipeline.node import tool as tools

        command = tools.install((tool or prefix).absolute(), store=root)
        output.note(f"sqshpipe is {command} here")
    output.data(plugstack_line(program))


@node.command("check")
def check_node(
    image: Image,
    store: options.Store = None,
    efa: Annotated[
        bool | None, typer.Option("--efa/--no-efa", help="Also libfabric and NCCL's plugin.")
    ] = None,
    leases: Annotated[
        Path | None, typer.Option("--leases", help="Where jobs leave leases, if not STORE/leases.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Compare an image with this node: CUDA, driver, EFA; exit with 7 if it does not fit.

    Also which squashfs server ranks would get, and what pyxis and enroot of this node do.
    """
    from pipeline.node import check as node_check

    found = node_check.check(wanted(image, store).path, node_check.this_host(), efa=efa)
    found += node_check.software()
    if "/" not in image or leases:
        found.append(node_check.leases(leases or open_store(store).layout.leases))
    if as_json:
        output.data_json([{"what": each.what, "verdict": each.verdict, "text": each.text} for each in found])
    else:
        for each in found:
            output.data(f"{each.verdict:<8} {each.what}: {each.text}")
    bad = [each.what for each in found if each.verdict == "bad"]
    if bad:
        raise VerificationError(f"{image} does not fit this node: {', '.join(bad)}")


@node.command("bench")
def bench_node(
    image: Image,
    command: Annotated[
        list[str] | None, typer.Argument(help="After --: the work, for example python -c 'import torch'.")
    ] = None,
    store: options.Store = None,
    scratch: Annotated[
        Path | None, typer.Option("--scratch", help="Where the image is unpacked; default: /tmp.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Measure seconds to the first rank: unpacked, squashfuse, kernel mount, prewarmed."""
    from pipeline.node import bench

    rows = []
    if not as_json:
        output.data(f"{'':<20} first rank  work")
    for each in bench.bench(wanted(image, store), scratch or Path(tempfile.gettempdir()), command or ()):
        rows.append(each)
        if not as_json:
            times = f"{_seconds(each.first_rank)}    {_seconds(each.work)}"
            output.data(f"{each.way:<20} {times}  {each.note}".rstrip())
    if as_json:
        output.data_json(
            [{"way": e.way, "first_rank": e.first_rank, "work": e.work, "note": e.note} for e in rows]
        )


@node.command()
def mount(
    image: Image,
    store: options.Store = None,
    holder_pid: HolderPid = None,
    job: Job = None,
    digest: Annotated[str | None, typer.Option("--digest", help="sha256 of a file given by path.")] = None,
    by: With = None,
    as_json: options.Json = False,
) -> None:
    """Mount an image once on this node and print the folder.

    The mount stays until every holder has called `unmount` or has ended.
    """
    from pipeline.node import prefetch, run, shared_mount

    holder = shared_mount.job_holder(job) if job else run.holder_for_caller(holder_pid)
    found = wanted(image, store, digest)
    shared = shared_mount.acquire(found.path, found.sha256, holder, kind=kind_of(by))
    prefetch.begin(found, holder)
    if as_json:
        output.data_json(
            {"folder": str(shared.root), "file": str(found.path), "by": shared.kind, "device": shared.device}
        )
    else:
        output.data_path(shared.root)


@node.command()
def unmount(
    image: Annotated[str | None, typer.Argument(help="As given to mount; not needed with --job.")] = None,
    store: options.Store = None,
    holder_pid: HolderPid = None,
    job: Job = None,
) -> None:
    """Release this caller's hold; unmount when no holder is left."""
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


@node.command()
def hooks(
    folder: Annotated[Path, typer.Option("--output", "-o", help="Folder for prolog and epilog.")],
    store: options.Store = None,
    command: Annotated[
        str, typer.Option("--command", help="sqshpipe on the nodes.")
    ] = "/usr/local/bin/sqshpipe",
) -> None:
    """Write a Slurm Prolog and Epilog that mount a job's image, for clusters without pyxis."""
    from pipeline.cluster import bootstrap as rendering

    for name, text in rendering.hooks(named_root(store), command).items():
        write_out(text, folder / name, executable=True)
        output.data(str(folder / name))


def kind_of(text: str | None) -> Kind | None:
    kinds: dict[str | None, Kind | None] = {None: None, "kernel": "kernel", "fuse": "fuse"}
    if text in kinds:
        return kinds[text]
    raise ConfigError(f"--with {text!r} is neither kernel nor fuse")


def _seconds(value: float | None) -> str:
    return "     -  " if value is None else f"{value:6.2f} s"
