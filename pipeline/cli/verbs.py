"""The verbs: where each is written, and its line in the list of all.

A verb's module is loaded when it is called: to load all costs more than what ``sqshpipe resolve`` does.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from pipeline.cli import help_page
from pipeline.errors import ConfigError

# By panel of the help, in its order: name, place below pipeline.cli, and a line that fits 80 columns.
PANELS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "From Dockerfile to .sqsh": (
        ("release", "release:release", "Take an image through all stages and print the path of its .sqsh."),
        ("convert", "convert:convert", "Make a .sqsh of an image, read it back, and print its path."),
        ("verify", "convert:verify", "Read a .sqsh back entirely and compare it with an image."),
        ("scan", "scan:scan", "Show the findings of pushed images, or judge releases anew."),
        ("plan", "plan:plan", "Tell for each image and stage what would run, and why."),
        ("lock", "plan:lock", "Write images.lock: which digest each base's tag stands for now."),
        ("schema", "plan:schema", "Print the JSON schema of images.yaml, for editors."),
        ("refresh", "refresh:refresh", "Ask whether bases moved, write images.lock, rebuild what follows."),
    ),
    "Releases": (
        ("list", "store:list_releases", "The releases of the store, newest first."),
        ("show", "store:show", "Everything that the record of a release says, whatever its state."),
        ("resolve", "store:resolve", "Print the path of a release."),
        ("publish", "store:publish", "Publish a .sqsh that was made elsewhere."),
        ("promote", "store:promote", "Let a channel name a release."),
        ("rollback", "store:rollback", "Let a channel name what it named before."),
        ("yank", "store:yank", "Hide a release from resolving without deleting it."),
        ("keep", "store:keep", "Mark a release so that prune never takes it."),
        ("lease", "retention:lease", "Say that you use a release, so that prune leaves its file."),
        ("prune", "retention:prune", "Hide releases that nobody needs, and delete hidden ones later."),
        ("scrub", "upkeep:scrub", "Read releases back and compare size and sha256."),
        ("du", "upkeep:du", "What each image and version costs."),
        ("adopt", "upkeep:adopt", "Take .sqsh files that exist already in as releases."),
        ("sync", "upkeep:sync", "Copy the releases that are missing at another store."),
        ("store", "retention:store_verbs", "Care of the whole store."),
        ("attest", "attest:attest_verbs", "Signatures over releases."),
    ),
    "On the cluster": (
        ("mount", "node:mount", "Mount an image once on this node, and count the caller."),
        ("unmount", "node:unmount", "Count the caller no longer; the last one unmounts."),
        ("run", "node:run", "Run a command in an image that all tasks of this node share."),
        ("prewarm", "warm:prewarm", "Bring an image to nodes before the job: one Slurm task a node."),
        ("cluster", "cluster:cluster", "What nodes need: importer, bootstrap script, cluster file."),
        ("job", "job:job", "Job scripts whose ranks share one image."),
        ("node", "warm:node", "Does an image fit this node, and where does its time go."),
    ),
    "Registries and CI": (
        ("mirror", "ecr:mirror", "Copy bases into our registry as they are."),
        ("ecr", "ecr:ecr", "Repositories in Amazon ECR and who may use them."),
        ("ci", "ci:ci", "What the GitHub workflows call."),
    ),
    "Looking": (
        ("report", "report:report", "Write one HTML page about the store: releases, sizes, changes."),
        ("diff", "report:diff", "Tell what changed between two releases: base, inputs, size, scan."),
        ("ls", "squashfs:list_inside", "Show what is in a .sqsh, without mounting it."),
        ("cat", "squashfs:cat", "Print a file out of a .sqsh, without mounting it."),
        ("cache", "squashfs:cache", "Show the layer packs that save unpacking and compressing."),
        ("doctor", "doctor:doctor", "Check tools, space, daemon, registry and store."),
        ("init", "init:init", "Write a first images.yaml, Dockerfile and workflow."),
    ),
}
_FOR_OURSELVES = {"warm-here": "warm:warm_here"}  # what prewarm runs on a node
_PLACES = {name: place for rows in PANELS.values() for name, place, _ in rows} | _FOR_OURSELVES


class Verbs(TyperGroup):
    """All verbs by name; each stays a name and a line until it is called, or `load_all` is."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for panel, rows in PANELS.items():
            for name, _, line in rows:
                self.add_command(TyperCommand(name, short_help=line, rich_help_panel=panel))
        for name in _FOR_OURSELVES:
            self.add_command(TyperCommand(name, hidden=True))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            typer.echo(ctx.get_help(), color=ctx.color)
            raise typer.Exit(ConfigError.exit_code)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        if args[0] in _PLACES:
            self._load(args[0])
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        options = [_in_help(one, ctx) for one in self.get_params(ctx) if isinstance(one, TyperOption)]
        verbs = {panel: [(name, line) for name, _, line in rows] for panel, rows in PANELS.items()}
        formatter.write(help_page.draw(ctx, options, verbs))
        ctx.color = help_page.takes_colours()

    def load_all(self) -> None:
        """Every verb with its parameters, for what describes the command line as a whole."""
        for name in _PLACES:
            self._load(name)

    def _load(self, name: str) -> None:
        module, _, written = _PLACES[name].partition(":")
        found: typer.Typer | Callable[..., Any] = getattr(import_module(f"pipeline.cli.{module}"), written)
        alone = typer.Typer(rich_markup_mode=self.rich_markup_mode, pretty_exceptions_enable=False)
        if isinstance(found, typer.Typer):
            alone.add_typer(found, name=name)
        else:
            alone.command(name)(found)
        made = typer.main.get_group(alone).commands[name]
        for shown in ("short_help", "hidden", "rich_help_panel"):
            setattr(made, shown, getattr(self.commands[name], shown))
        self.add_command(made)


def _in_help(option: TyperOption, context: typer.Context) -> tuple[str, str, str, str]:
    long = ",".join(word for word in option.opts if word.startswith("--"))
    short = ",".join(word for word in option.opts if not word.startswith("--"))
    _, told = option.get_help_record(context) or ("", "")
    kind = "" if option.is_flag else option.make_metavar(context)
    return long, short, kind, told.replace("  [", "\n[")  # what it is by default stands in a line of its own
