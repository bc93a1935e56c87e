"""Options that several verbs share, each declared once with its environment variable."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import completion


class LogFormat(str, Enum):
    text = "text"
    json = "json"


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors on stderr.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print also what tools print.")]
LogFormatOption = Annotated[
    LogFormat, typer.Option("--log-format", help="Format of stderr.", show_default=False)
]
ConfigFile = Annotated[
    Path,
    typer.Option(
        "--config",
        "-c",
        envvar="SQSHPIPE_CONFIG",
        help="images.yaml; looked for in this folder and in those above.",
    ),
]
Store = Annotated[
    Path | None, typer.Option("--store", envvar="SQSHPIPE_STORE", help="The shared folder of releases.")
]
Registry = Annotated[
    str | None, typer.Option("--registry", envvar="SQSHPIPE_REGISTRY", help="Where images are pushed.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for machines.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Change nothing; exit with 10 if something would change.")
]
Images = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[IMAGE]…", help="Images; default: all of images.yaml.", autocompletion=completion.configured
    ),
]
ReleaseName = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE[:VERSION|:CHANNEL]",
        help="A release.",
        show_default=False,
        autocompletion=completion.releases,
    ),
]
Platform = Annotated[str | None, typer.Option("--platform", help="os/architecture; default: this machine's.")]
AllowExternal = Annotated[
    bool, typer.Option("--allow-external", help="Let channels name a .sqsh that was made elsewhere.")
]
OutputFile = Annotated[Path | None, typer.Option("--output", "-o", help="The file; default: stdout.")]

DEFAULT_CONFIG = Path("images.yaml")


def find_config(name: Path = DEFAULT_CONFIG) -> Path:
    """images.yaml here or in the nearest folder above, as git finds its repository; else `name` itself.

    Above this folder only files of this user or of root count: anybody can put one into /tmp.
    """
    if name.is_absolute() or name.exists():
        return name
    try:
        above = Path.cwd().parents
    except FileNotFoundError:  # the working directory was deleted
        return name
    for folder in above:
        found = folder / name
        try:
            if found.stat().st_uid in (os.geteuid(), 0):
                return found
        except OSError:
            continue
    return name
