"""A node of the cluster: what is put on it, whether an image fits it, and mounts that its tasks share."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import files, options, output
from pipeline.cli.cluster import write_out
from pipeline.cli.files import Image, With, kind_of, wanted
from pipeline.cli.prewarm import prewarm, warm_here
from pipeline.cli.profile import record
from pipeline.cli.stores import named_root, open_store
from pipeline.cli.verbs import Verbs
from pipeline.errors import ConfigError, ToolError, VerificationError

if TYPE_CHECKING:
    from pipeline.store.trust import Required

node = Verbs("A node of the cluster: set it up, check it, warm it, mount on it.")
node.command()(prewarm)
node.command("profile")(record)
node.command("warm-here", hidden=True)(warm_here)

HolderPid = Annotated[
    int | None, typer.Option("--holder-pid", help="The process that holds the mount; default: the caller.")
]
Job = Annotated[
    str | None,
    typer.Option("--job", help="Held by this Slurm job until its epilog, instead of by a process."),
]
Settings = Annotated[
    Path, typer.Option("--settings", help="pyxis-importer.json of the nodes, beside the importer.")
]
INSTALLED = Path("/opt/sqshpipe/bin/pyxis-importer.json")
_NUMBER = 10  # digits of a user's or group's number


@node.command()
def install(
    prefix: Annotated[
        Path, typer.Option("--prefix", help="Folder on this node; the importer is PREFIX/bin/pyxis-importer.")
    ],
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
        typer.Option("--trusted-uid", help="uid whose local copies are trusted, besides root's; repeatable."),
    ] = None,
    leases: Annotated[
        Path | None, typer.Option("--leases", help="Folder for leases; default: STORE/leases.")
    ] = None,
    cluster_name: Annotated[
        str, typer.Option("--cluster-name", help="Name of this cluster, written into leases.")
    ] = "",
    tool: Annotated[
        Path | None,
        typer.Option("--tool", help="Where sqshpipe itself goes, such as a shared folder; default: PREFIX."),
    ] = None,
    importer_only: Annotated[
        bool, typer.Option("--importer-only", help="Install only the importer, not sqshpipe itself.")
    ] = False,
    enroot: Annotated[str, typer.Option("--enroot", help="The enroot program to use.")] = "enroot",
    verify: Annotated[
        bool, typer.Option("--verify", help="Check each file's whole sha256, once a node and digest.")
    ] = False,
    require_signature: Annotated[
        str | None,
        typer.Option(
            "--require-signature",
            help="Public key (PEM file, awskms:KEY-ID): what it did not sign does not resolve here.",
        ),
    ] = None,
    marks: Annotated[
        Path | None,
        typer.Option(
            "--marks", help="Where those who verify signatures leave marks; default: a folder of --state."
        ),
    ] = None,
    mark_uid: Annotated[
        list[int] | None,
        typer.Option("--mark-uid", help="Whose marks count, besides root's; repeatable."),
    ] = None,
    mounts: Annotated[
        str, typer.Option("--mounts", help="For jobs, by the prolog: kernel, or fuse for none.")
    ] = "kernel",
) -> None:
    """Put the pyxis importer, its squashfuse and sqshpipe on this node; print the line for plugstack.conf."""
    from pipeline.node import shim, signed
    from pipeline.node.install import ImporterSettings, plugstack_line
    from pipeline.node.install import install as put

    root = named_root(store)
    if require_signature is not None:  # first: what follows can fail, and must not leave a node without it
        signed.install(_policy(require_signature, root, state.absolute(), marks, mark_uid or []))
    elif marks or mark_uid:
        raise ConfigError("--marks and --mark-uid need --require-signature")
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
            mounts=mounts,
            cluster=cluster_name,
            leases=leases.absolute() if leases else None,
        ),
        prefix,
    )
    if not importer_only:
        from pipeline.node import tool as tools

        command = tools.install((tool or prefix).absolute(), store=root)
        output.note(
            f"sqshpipe is {command} here, and needs Python {sys.version_info[0]}.{sys.version_info[1]}"
            " on each machine that runs it"
        )
    program_of_ours = shim.install(prefix.absolute())
    if mounts == "kernel":
        output.note(f"kernel mounts for jobs: ln -s {program_of_ours} /usr/local/sbin/; sqshpipe node hooks")
    output.data(plugstack_line(program))


def _policy(key: str, store: Path, state: Path, marks: Path | None, uids: list[int]) -> Required:
    from pipeline.attest.signing import open_keys
    from pipeline.store import trust

    folder = (marks or state / "signed").absolute()
    if folder.resolve().is_relative_to(store.resolve()):
        raise ConfigError(
            f"marks of verified signatures cannot lie in the store ({folder})",
            hint="who can write the store could write them: name a folder elsewhere",
        )
    return trust.Required(
        keys=open_keys(key),
        source=trust.NODE_POLICY,
        marks=folder,
        mark_uids=tuple(dict.fromkeys([0, *uids])),
        state=state,
    )


@node.command("check")
def check_node(
    image: Image,
    store: options.Store = None,
    efa: Annotated[
        bool | None, typer.Option("--efa/--no-efa", help="Also libfabric and NCCL's plugin.")
    ] = None,
    leases: Annotated[
        Path | None, typer.Option("--leases", help="Folder of leases; default: STORE/leases.")
    ] = None,
    settings: Settings = INSTALLED,
    as_json: options.Json = False,
) -> None:
    """Compare an image with this node: CUDA, driver, EFA; exit with 7 if it does not fit.

    Also what serves the ranks' reads, by the kernel or not, and what pyxis and enroot of this node do.
    """
    from pipeline.node import check as node_check

    found = node_check.check(files.image(image, store).path, node_check.this_host(), efa=efa)
    found += node_check.software() + node_check.kernel_mounts(settings)
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
        Path | None, typer.Option("--scratch", help="Folder to unpack the image in; default: /tmp.")
    ] = None,
    ranks: Annotated[
        list[int] | None,
        typer.Option(
            "--ranks", help="Number of ranks at the same time; repeatable; default: 1 and 8.", min=1
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Measure seconds and bytes to the first rank and inside the ranks, cold and warm.

    Unpacked, by squashfuse, by a kernel mount, and the mounts with a profile or the whole file read ahead.
    """
    import dataclasses

    from pipeline.node import bench

    rows = []
    if not as_json:
        output.data(f"{'':<25} ranks  first rank  of the store  work        of the store")
    place = scratch or Path(tempfile.gettempdir())
    for each in bench.bench(files.image(image, store), place, command or (), ranks=ranks or bench.RANKS):
        rows.append(dataclasses.asdict(each))
        if not as_json:
            way = f"{each.way}, warm" if each.warm else each.way
            first = f"{_seconds(each.first_rank)}    {_bytes(each.first_bytes)}"
            work = f"{_seconds(each.work)}    {_bytes(each.bytes)}"
            output.data(f"{way:<25} {each.ranks:>5}  {first}  {work}  {each.note}".rstrip())
    if as_json:
        output.data_json(rows)


@node.command()
def unpack(image: Image, store: options.Store = None) -> None:
    """For pyxis before 0.22: unpack an image once on this node; print a name for --container-name."""
    from pipeline.node import unpacked

    found = unpacked.unpack(wanted(image, store))
    if found.seconds:
        beside = (
            f"; unpacked images beside it: {found.others} (enroot list, enroot remove)"
            if found.others
            else ""
        )
        output.note(
            f"unpacked in {found.seconds:.1f} s, which pyxis 0.24 does not need: {found.folder}{beside}"
        )
    output.data(found.name)


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
    from pipeline.node import prefetch, run, shared_mount, signed

    holder = shared_mount.job_holder(job) if job else run.holder_for_caller(holder_pid)
    found = wanted(image, store, digest)
    with signed.opened(found) as opened:
        shared = shared_mount.acquire(found.path, found.sha256, holder, kind=kind_of(by), opened=opened)
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


@node.command("mount-for-job", hidden=True)
def mount_for_job(
    digests: Annotated[list[str], typer.Argument(help="sha256 of releases of the store.")],
    job: Annotated[str, typer.Option("--job", help="Number of the Slurm job.")],
    user: Annotated[str, typer.Option("--user", help="UID:GID of the job.")],
    settings: Settings = INSTALLED,
) -> None:
    """What a prolog calls: mount files for a job by the kernel, and show them to its user."""
    from pipeline.node import job_mount
    from pipeline.node.user_mount import User

    uid, _, gid = user.partition(":")
    if not (uid.isdecimal() and gid.isdecimal() and max(len(uid), len(gid)) <= _NUMBER):
        raise ConfigError(f"--user {user!r} is not UID:GID")
    of = User(uid=int(uid), gid=int(gid))
    folders, failed = job_mount.acquire_all(job_mount.settings_of(settings), digests, job, of)
    for folder in folders:
        output.data_path(folder)
    if failed:
        raise ToolError(f"job {job}: {len(failed)} files are read through squashfuse", details=failed)


@node.command()
def hooks(
    folder: Annotated[Path, typer.Option("--output", "-o", help="Folder for prolog and epilog.")],
    command: Annotated[
        str | None,
        typer.Option("--command", help="sqshpipe on the nodes; default: where node install puts it."),
    ] = None,
    settings: Settings = INSTALLED,
) -> None:
    """Write a Slurm Prolog and Epilog: they mount a job's image by the kernel, once a node, for its ranks."""
    from pipeline.cluster import bootstrap as rendering
    from pipeline.node import tool as tools

    for name, text in rendering.hooks(settings, command or str(tools.place())).items():
        write_out(text, folder / name, executable=True)
        output.data(str(folder / name))


def _seconds(value: float | None) -> str:
    return "     -  " if value is None else f"{value:6.2f} s"


def _bytes(value: int | None) -> str:
    from pipeline.text import human_bytes

    return f"{'-' if value is None else human_bytes(value):>12}"
