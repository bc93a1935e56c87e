"""Options that several verbs share, each declared once with its environment variable."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class LogFormat(str, Enum):
    text = "text"
    json = "json"


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only errors on stderr.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also what tools say.")]
LogFormatOption = Annotated[LogFormat, typer.Option("--log-format", help="How stderr tells the story.")]
ConfigFile = Annotated[Path, typer.Option("--config", "-c", envvar="SQSHPIPE_CONFIG", help="images.yaml.")]
Store = Annotated[
    Path | None, typer.Option("--store", envvar="SQSHPIPE_STORE", help="The shared folder of releases.")
]
Registry = Annotated[
    str | None, typer.Option("--registry", envvar="SQSHPIPE_REGISTRY", help="Where images are pushed.")
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, for machines.")]

DEFAULT_CONFIG = Path("images.yaml")
