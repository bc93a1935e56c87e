"""Verbs for the nodes of a cluster: what is put on them, and what runs there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import options, output
from pipeline.errors import ConfigError, ToolError
from pipeline.system import untrusted

cluster = typer.Typer(no_args_is_help=True, help="What nodes need: importer, bootstrap script, cluster file.")


DEFAULT_VALUES = Path("cluster.yaml")
Values = Annotated[Path, typer.Option("--values", help="The few values of this cluster.")]
OutputFile = Annotated[Path | None, typer.Option("--output", "-o", help="Default: stdout.")]


def need_store(store: Path | None) -> Path:
    """The store that --store or SQSHPIPE_STORE names, absolute. Raises ConfigError when neither does."""
    if store is None:
        raise ConfigError("no store is named", hint="give --store DIR or set SQSHPIPE_STORE")
    return store.absolute()


@cluster.command("install")
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
    cluster_name: Annotated[str, typer.Option("--cluster-name", help="Told in leases.")] = "",
    enroot: Annotated[str, typer.Option("--enroot", help="The enroot to import with.")] = "enroot",
    tool: Annotated[
        Path | None,
        typer.Option("--tool", help="Where sqshpipe itself goes, such as a shared folder; default: PREFIX."),
    ] = None,
    importer_only: Annotated[
        bool, typer.Option("--importer-only", help="Leave sqshpipe itself out.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check each file's whole sha256, once a node and digest.")
    ] = False,
) -> None:
    """Put the pyxis importer and sqshpipe on this node (as root); print the line for plugstack.conf."""
    from pipeline.node.install import ImporterSettings, plugstack_line
    from pipeline.node.install import install as put

    root = need_store(store)
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
        output.tell(f"sqshpipe is {command} here")
    output.data(plugstack_line(program))


@cluster.command("bootstrap")
def bootstrap(
    values: Values = DEFAULT_VALUES,
    output_file: OutputFile = None,
) -> None:
    """Render the script that makes a node ready: enroot, pyxis, squashfuse, importer, credentials, limits."""
    from pipeline.cluster import bootstrap as rendering
    from pipeline.cluster import settings

    _give(rendering.script(settings.load(values)), output_file, executable=True)


@cluster.command("config")
def config(
    values: Values = DEFAULT_VALUES,
    output_file: OutputFile = None,
) -> None:
    """Render the cluster file of AWS ParallelCluster 3."""
    from pipeline.cluster import bootstrap as rendering
    from pipeline.cluster import settings

    _give(rendering.cluster_file(settings.load(values)), output_file)


@cluster.command("hooks")
def hooks(
    folder: Annotated[Path, typer.Option("--output", "-o", help="Folder for prolog and epilog.")],
    store: options.Store = None,
    command: Annotated[
        str, typer.Option("--command", help="sqshpipe on the nodes.")
    ] = "/usr/local/bin/sqshpipe",
) -> None:
    """Render a Slurm Prolog and Epilog that mount a job's image once a node, for clusters without pyxis."""
    from pipeline.cluster import bootstrap as rendering

    for name, text in rendering.hooks(need_store(store), command).items():
        _give(text, folder / name, executable=True)
        output.data(str(folder / name))


def _give(text: str, output_file: Path | None, *, executable: bool = False) -> None:
    if output_file is None:
        output.document(text)
        return
    try:
        output_file.parent.mkdir(parents=True, exist_ok=True)
        untrusted.replace_file(output_file, text.encode(), mode=0o755 if executable else 0o644)
    except OSError as error:
        raise ToolError(f"cannot write {output_file}: {error.strerror}") from error
