"""The tree of verbs. The module of a verb is loaded when the verb is called: to load all takes longer than a
short verb, and eight ranks of `run` start at once on a node.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

from pipeline import __version__
from pipeline.cli import logs, options, output, variables
from pipeline.cli.verbs import Page, Verbs

PANELS = {  # title on the page of all verbs: verb or group, and the module beside this one that has it
    "From Dockerfile to .sqsh": {
        "release": "release.release",
        "plan": "plan.plan",
        "lock": "plan.lock",
        "refresh": "refresh.refresh",
        "convert": "convert.convert",
        "verify": "convert.verify",
        "scan": "scan.scan",
        "init": "init.init",
        "doctor": "doctor.doctor",
    },
    "Releases": {
        "list": "releases.list_releases",
        "show": "releases.show",
        "resolve": "releases.resolve",
        "diff": "report.diff",
        "report": "report.report",
        "promote": "releases.promote",
        "rollback": "releases.rollback",
        "yank": "releases.yank",
        "keep": "releases.keep",
        "history": "releases.history",
        "run": "run.run",
    },
    "Groups of verbs": {
        "store": "store.store",
        "node": "node.node",
        "cluster": "cluster.cluster",
        "job": "job.job",
        "registry": "registry.registry_verbs",
        "ecr": "ecr.ecr",
        "attest": "attest.attest",
        "squashfs": "squashfs.squashfs",
        "cache": "cache.cache",
        "config": "config.config",
        "schedule": "schedule.schedule",
    },
    "": {"ci": "ci.ci"},  # hidden
}


def command_line(words: Sequence[str] = ()) -> Verbs:
    """What `words` call, with all verbs of its group; the whole tree where they name none."""
    called = next((word for word in words if not word.startswith("-")), "")
    if not any(called in verbs for verbs in PANELS.values()):
        called = ""
    app = Verbs(
        "From a Dockerfile to an immutable, versioned .sqsh that every rank shares.",
        name="sqshpipe",
        cls=Page,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_global_options)
    for panel, verbs in PANELS.items():
        for name, where in verbs.items():
            if called in (name, ""):
                module, _, attribute = where.partition(".")
                verb = getattr(import_module(f".{module}", __package__), attribute)
                if isinstance(verb, Verbs):
                    app.add_typer(verb, name=name, rich_help_panel=panel, hidden=not panel)
                else:
                    app.command(name, rich_help_panel=panel)(verb)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        output.data(f"sqshpipe {__version__}")
        raise typer.Exit


def _global_options(
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    log_format: options.LogFormatOption = options.LogFormat.text,
    version: Annotated[  # noqa: ARG001 - its callback ends the run
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    output.configure(quiet=quiet, verbose=verbose, json_log=log_format is options.LogFormat.json)
    logs.begin()
    variables.warn_of_misspelt(os.environ)
