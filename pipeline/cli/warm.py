"""Verbs about nodes and time: prewarm, node check, node bench."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import node as node_verbs
from pipeline.cli import options, output, profile
from pipeline.errors import ConfigError, ToolError, VerificationError

if TYPE_CHECKING:
    from pipeline.node.file_cache import Warmed

node = typer.Typer(no_args_is_help=True, help="Does an image fit this node, and where does its time go.")
node.command("profile")(profile.record)
STATE = Path("/var/lib/sqshpipe")

Local = Annotated[Path | None, typer.Option("--local", help="Copy into this folder of the node (NVMe).")]
State = Annotated[Path, typer.Option("--state", help="The importer's node-local folder, for its marks.")]
Check = Annotated[bool, typer.Option("--check/--no-check", help="Compare the sha256 of what is read.")]


def prewarm(
    image: node_verbs.Image,
    store: options.Store = None,
    nodes: Annotated[str | None, typer.Option("--nodes", help="Host list such as gpu[1-16].")] = None,
    partition: Annotated[str | None, typer.Option("--partition", help="All nodes of it that are up.")] = None,
    at_once: Annotated[int, typer.Option("--at-once", min=1, help="So many nodes at a time.")] = 8,
    local: Local = None,
    state: State = STATE,
    check: Check = True,
    startup: Annotated[
        bool, typer.Option("--startup", help="What a start needs, as the release's start-up profile says.")
    ] = False,
    sbcast: Annotated[
        bool | None, typer.Option("--sbcast/--no-sbcast", help="Default: when many nodes copy.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Bring an image to nodes before the job: one Slurm task a node; prints rate and time of each."""
    from pipeline.node import prewarm as prewarming
    from pipeline.slurm import client

    if (nodes is None) == (partition is None):
        raise ConfigError("say which nodes", hint="give either --nodes LIST or --partition NAME")
    hosts = client.hostnames(nodes) if nodes else client.partition_nodes(partition or "")
    found = node_verbs.wanted(image, store)
    if startup and (found.startup is None or not (found.startup / "startup-1.json").exists()):
        raise ConfigError(
            f"{image} has no start-up profile", hint=f"record one: sqshpipe node profile {image} -- CMD"
        )
    order = prewarming.Order(
        file=found.path,
        sha256=found.sha256,
        nodes=hosts,
        at_once=at_once,
        local=local.absolute() if local else None,
        state=state,
        check=check,
        startup=found.startup if startup else None,
        sbcast=sbcast,
        options=(f"--partition={partition}",) if partition else (),
    )
    outcomes = prewarming.prewarm(order)
    if json:
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


def warm_here(
    file: Annotated[Path, typer.Argument()],
    digest: Annotated[str, typer.Option("--digest")],
    local: Local = None,
    state: Annotated[Path | None, typer.Option("--state")] = None,
    brought: Annotated[Path | None, typer.Option("--from")] = None,
    check: Check = True,
    startup: Annotated[Path | None, typer.Option("--startup")] = None,
) -> None:
    """What prewarm runs on each node."""
    import json
    import os

    from pipeline.node import file_cache, prefetch
    from pipeline.node.image_file import ImageFile

    if startup is not None:
        if local is not None:
            file = file_cache.onto_disk(file, digest, local, state=state, brought=brought).path
        done = prefetch.now(ImageFile(path=file, sha256=digest, startup=startup))
    elif local is None:
        done = file_cache.into_page_cache(file, digest if check else None)
    else:
        done = file_cache.onto_disk(file, digest, local, state=state, brought=brought)
    node_name = os.environ.get("SLURMD_NODENAME") or done.host
    output.data(json.dumps(_as_json(node_name, done, "")))


@node.command("check")
def check_node(
    image: node_verbs.Image,
    store: options.Store = None,
    efa: Annotated[
        bool | None, typer.Option("--efa/--no-efa", help="Also libfabric and NCCL's plugin.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Compare an image with this node: architecture, CUDA and driver, EFA. Exit code 7: it does not fit.

    Also which squashfs server ranks would get, and what pyxis and enroot of this node do.
    """
    from pipeline.node import check as node_check

    found = node_check.check(node_verbs.wanted(image, store).path, node_check.this_host(), efa=efa)
    found += node_check.software()
    if json:
        output.data_json([{"what": each.what, "verdict": each.verdict, "text": each.text} for each in found])
    else:
        for each in found:
            output.data(f"{each.verdict:<8} {each.what}: {each.text}")
    bad = [each.what for each in found if each.verdict == "bad"]
    if bad:
        raise VerificationError(f"{image} does not fit this node: {', '.join(bad)}")


@node.command("bench")
def bench_node(
    image: node_verbs.Image,
    command: Annotated[
        list[str] | None, typer.Argument(help="After --: the work, for example python -c 'import torch'.")
    ] = None,
    store: options.Store = None,
    scratch: Annotated[
        Path | None, typer.Option("--scratch", help="Where the image is unpacked; default: /tmp.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Seconds to the first rank and of import-like work: unpacked, squashfuse, kernel mount, prewarmed."""
    from pipeline.node import bench

    rows = []
    if not json:
        output.data(f"{'':<20} first rank  work")
    for each in bench.bench(
        node_verbs.wanted(image, store), scratch or Path(tempfile.gettempdir()), command or ()
    ):
        rows.append(each)
        if not json:
            times = f"{_seconds(each.first_rank)}    {_seconds(each.work)}"
            output.data(f"{each.way:<20} {times}  {each.note}".rstrip())
    if json:
        output.data_json(
            [{"way": e.way, "first_rank": e.first_rank, "work": e.work, "note": e.note} for e in rows]
        )


def _seconds(value: float | None) -> str:
    return "     -  " if value is None else f"{value:6.2f} s"


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
    }


def _line(node_name: str, warmed: Warmed | None, error: str) -> str:
    if warmed is None:
        return f"{node_name}: {error}"
    done = "was there" if warmed.there else f"{warmed.rate / 1e6:.0f} MB/s"
    return f"{node_name}: {warmed.size / 1e6:.0f} MB in {warmed.seconds:.1f} s, {done}"
