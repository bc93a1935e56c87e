"""``sqshpipe node prewarm``: bring an image to nodes before the job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import options, output
from pipeline.cli.files import Image, wanted
from pipeline.errors import ConfigError, ToolError, VerificationError
from pipeline.text import human_bytes, human_seconds

if TYPE_CHECKING:
    from pipeline.node.prewarm_on_node import Warmed

STATE = Path("/var/lib/sqshpipe")

Local = Annotated[Path | None, typer.Option("--local", help="Copy into this folder of the node (NVMe).")]
State = Annotated[Path, typer.Option("--state", help="The importer's node-local folder, for its marks.")]
Check = Annotated[bool, typer.Option("--check/--no-check", help="Compare the sha256 of what is read.")]


def prewarm(
    image: Image,
    store: options.Store = None,
    nodes: Annotated[str | None, typer.Option("--nodes", help="Host list such as gpu[1-16].")] = None,
    partition: Annotated[
        str | None, typer.Option("--partition", help="All nodes of this partition that are up.")
    ] = None,
    at_once: Annotated[
        int, typer.Option("--at-once", min=1, help="Number of nodes that work at the same time.")
    ] = 8,
    local: Local = None,
    state: State = STATE,
    check: Check = True,
    startup: Annotated[
        bool, typer.Option("--startup", help="Only what a start reads, by the release's start-up profile.")
    ] = False,
    sbcast: Annotated[
        bool | None,
        typer.Option("--sbcast/--no-sbcast", help="Copy by sbcast; default: when many nodes copy."),
    ] = None,
    command: Annotated[
        Path, typer.Option("--command", help="sqshpipe on the nodes; this one's path where it is not there.")
    ] = Path("/opt/sqshpipe/bin/sqshpipe"),
    as_json: options.Json = False,
) -> None:
    """Bring an image to nodes before the job, one Slurm task a node."""
    from pipeline.node import prewarm as prewarming
    from pipeline.slurm import client

    if (nodes is None) == (partition is None):
        raise ConfigError("say which nodes", hint="give either --nodes LIST or --partition NAME")
    found = wanted(image, store, read=False)
    hosts = client.hostnames(nodes) if nodes else client.partition_nodes(partition or "")
    if startup and (found.startup is None or not (found.startup / "startup-1.json").exists()):
        raise ConfigError(
            f"{image} has no start-up profile", hint=f"record one: sqshpipe node profile {image} -- CMD"
        )
    order = prewarming.PrewarmRequest(
        file=found.path,
        sha256=found.sha256,
        nodes=hosts,
        at_once=at_once,
        local=local.absolute() if local else None,
        ranges=found.ranges,
        state=state,
        check=check,
        startup=found.startup if startup else None,
        sbcast=sbcast,
        options=(f"--partition={partition}",) if partition else (),
        command=command,
        signed=_signed(image, store),
    )
    outcomes = prewarming.prewarm(order)
    if as_json:
        output.data_json([_as_json(each.node, each.warmed, each.error) for each in outcomes])
    else:
        for each in outcomes:
            output.data(_line(each.node, each.warmed, each.error))
    failed = [each.node for each in outcomes if each.warmed is None]
    if failed:
        raise ToolError(
            f"{len(failed)} of {len(outcomes)} nodes are not warm: {', '.join(failed[:8])}",
            hint="the job starts there all the same, only slower",
        )


def _signed(image: str, store: Path | None) -> tuple[str, str] | None:
    """The release whose signature the nodes verify, and its store; None where none is required."""
    from pipeline.cli.stores import host_platform, open_store
    from pipeline.store import trust

    if "/" in image:
        return None
    opened = open_store(store)
    if not trust.all_of(opened.required):
        return None
    return opened.resolve(image, host_platform()).name, str(opened.root)


def warm_here(
    file: Annotated[Path, typer.Argument()],
    digest: Annotated[str, typer.Option("--digest")],
    local: Local = None,
    state: Annotated[Path | None, typer.Option("--state")] = None,
    brought: Annotated[Path | None, typer.Option("--from")] = None,
    ranges: Annotated[Path | None, typer.Option("--ranges")] = None,
    check: Check = True,
    startup: Annotated[Path | None, typer.Option("--startup")] = None,
    release: Annotated[str | None, typer.Option("--release")] = None,
    store: options.Store = None,
) -> None:
    """What prewarm runs on each node."""
    import json
    import os

    from pipeline.node import prefetch, prewarm_on_node
    from pipeline.node.image_file import ImageFile

    if release is not None and wanted(release, store).sha256 != digest:  # leaves the marks
        raise VerificationError(f"{release} is another file on this node than {digest}")
    if startup is not None:
        if local is not None:
            file = prewarm_on_node.onto_disk(file, digest, local, state=state, brought=brought).path
        done = prefetch.now(ImageFile(path=file, sha256=digest, startup=startup))
    elif local is None:
        done = prewarm_on_node.into_page_cache(file, digest if check else None)
    else:
        done = prewarm_on_node.onto_disk(file, digest, local, state=state, brought=brought, ranges=ranges)
    node_name = os.environ.get("SLURMD_NODENAME") or done.host
    output.data(json.dumps(_as_json(node_name, done, "")))


def _as_json(node_name: str, warmed: Warmed | None, error: str) -> dict[str, object]:
    if warmed is None:
        return {"node": node_name, "error": error}
    return {
        "node": node_name,
        "host": warmed.host,
        "path": str(warmed.path),
        "size": warmed.size,
        "seconds": round(warmed.seconds, 3),
        "there": warmed.there,
        "read": warmed.read,
        "reused": warmed.reused,
    }


def _line(node_name: str, warmed: Warmed | None, error: str) -> str:
    if warmed is None:
        return f"{node_name}: {error}"
    done = "was there" if warmed.there else f"{human_bytes(round(warmed.rate))}/s"
    shared = f", {human_bytes(warmed.reused)} of it from copies on the node" if warmed.reused else ""
    return f"{node_name}: {human_bytes(warmed.size)} in {human_seconds(warmed.seconds)}, {done}{shared}"
