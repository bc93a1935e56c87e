"""Brings a .sqsh to nodes before the job: one Slurm task a node, at most so many nodes at a time.

Slurm places, limits and follows the tasks; nothing of ours stays running.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError, ToolError
from pipeline.node import tool
from pipeline.node.prewarm_on_node import Warmed
from pipeline.slurm import client
from pipeline.system import process
from pipeline.system.log import log

SBCAST_FROM_NODES = 8
"""From so many nodes on, sbcast's tree spares the shared file system what each node would read."""

_BROADCAST = """\
set -e
from=$1 partial=$2 folder=$3
shift 3
srun --ntasks-per-node=1 mkdir -p "$folder"
srun --ntasks-per-node=1 mkdir -m 0700 "${partial%/*}"
trap 'srun --ntasks-per-node=1 rm -rf -- "${partial%/*}"' EXIT
sbcast "$from" "$partial"
srun --ntasks-per-node=1 --label --kill-on-bad-exit=0 "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrewarmRequest:
    """What to warm, where. `local` is the node's own folder for a copy; None means the page cache.

    `ranges` is where the store keeps what the file has in common with other releases.
    With `startup`, the folder of start-up profiles, what a start needs is read into the page cache: of the
    local copy, else of the file itself and no more.
    """

    file: Path
    sha256: str
    nodes: tuple[str, ...]
    at_once: int = 8
    local: Path | None = None
    ranges: Path | None = None
    state: Path | None = Path("/var/lib/sqshpipe")
    check: bool = True
    startup: Path | None = None
    sbcast: bool | None = None
    signed: tuple[str, str] | None = None
    """(IMAGE:VERSION, store) whose signature each node verifies first; None where none is required."""
    timeout: float = 3600.0
    options: tuple[str, ...] = ()
    command: Path = tool.COMMAND
    """sqshpipe on the nodes; where it is not there, this program is called by its path here."""

    def __post_init__(self) -> None:
        if not self.nodes:
            raise ConfigError("no nodes to prewarm", hint="give --nodes or --partition")
        if self.at_once < 1:
            raise ConfigError(f"--at-once must be at least 1, not {self.at_once}")

    @property
    def broadcasts(self) -> bool:
        """Whether sbcast pays: many nodes, a copy on each, and Slurm allowed to run them together."""
        if self.sbcast is not None:
            return self.sbcast and self.local is not None
        return self.local is not None and min(len(self.nodes), self.at_once) >= SBCAST_FROM_NODES


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOutcome:
    """What became of one node: `warmed`, or why not."""

    node: str
    warmed: Warmed | None
    error: str = ""


def prewarm(order: PrewarmRequest) -> list[NodeOutcome]:
    """Warm all nodes in groups of `at_once`; a node that fails does not stop the others.

    Raises ToolError when Slurm itself takes no step.
    """
    outcomes: list[NodeOutcome] = []
    for first in range(0, len(order.nodes), order.at_once):
        group = order.nodes[first : first + order.at_once]
        log.info("prewarming", nodes=",".join(group), file=order.file.name)
        outcomes += _group(order, group)
    return outcomes


def _group(order: PrewarmRequest, nodes: Sequence[str]) -> list[NodeOutcome]:
    places = [f"--nodes={len(nodes)}", f"--nodelist={','.join(nodes)}", *order.options]
    # --overlap and no exclusive use: a prewarm must not wait for the node's cores
    step = ["--ntasks-per-node=1", "--label", "--overlap", "--kill-on-bad-exit=0"]
    words = [
        "node",
        "warm-here",
        str(order.file),
        "--digest",
        order.sha256,
        "--check" if order.check else "--no-check",
    ]
    words += ["--local", str(order.local)] if order.local else []
    words += ["--ranges", str(order.ranges)] if order.local and order.ranges else []
    words += ["--startup", str(order.startup)] if order.startup else []
    words += ["--state", str(order.state)] if order.state else []
    words += ["--release", order.signed[0], "--store", order.signed[1]] if order.signed else []
    if order.broadcasts and order.local is not None:
        # in a folder of ours alone, under a name that nobody can plant: sbcast follows symlinks
        partial = order.local / f".broadcast.{secrets.token_hex(8)}" / f"{order.sha256}.sqsh"
        words += ["--from", str(partial)]
        script = [
            _BROADCAST,
            "sh",
            str(order.file),
            str(partial),
            str(order.local),
            *_command(words, order.command),
        ]
        done = process.run(
            ["salloc", "--quiet", *places, "bash", "-c", *script], check=False, timeout=order.timeout
        )
    else:
        done = client.srun(
            [*places, *step], _command(words, order.command), timeout=order.timeout, check=False
        )
    return _outcomes(done, nodes)


def _command(words: Sequence[str], command: Path) -> list[str]:
    return tool.on_node(["--quiet", *words], command)


def _outcomes(done: process.Completed, nodes: Sequence[str]) -> list[NodeOutcome]:
    """srun's labelled lines (``0: {…}``): a node says what it did, or why it could not, or nothing at all."""
    reported: dict[str, Warmed] = {}
    for line in done.stdout.splitlines():
        _, _, text = line.partition(": ")
        if text.startswith("{"):
            table = json.loads(text)
            node = table.pop("node")
            reported[node] = Warmed(**{**table, "path": Path(table["path"])})
    if not reported and done.returncode != 0 and "sqshpipe:" not in done.stderr:
        raise ToolError(f"Slurm did not run the prewarm: {done.stderr.strip()[-500:]}", hint="sinfo -N")
    errors = [line.partition(": ")[2] or line for line in done.stderr.splitlines() if "sqshpipe:" in line]
    why = "; ".join(dict.fromkeys(errors)) or done.stderr.strip()[-300:] or "it said nothing"
    return [
        NodeOutcome(node=node, warmed=reported.get(node), error="" if node in reported else why)
        for node in nodes
    ]
