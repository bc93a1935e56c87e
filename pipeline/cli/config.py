"""The configuration files themselves."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli import output
from pipeline.cli.verbs import Verbs

config = Verbs("images.yaml and cluster.yaml themselves.")


@config.command()
def schema(
    cluster: Annotated[bool, typer.Option("--cluster", help="Of cluster.yaml instead.")] = False,
) -> None:
    """Print the JSON schema of images.yaml or cluster.yaml, for editors."""
    if cluster:
        from pipeline.cluster.settings import json_schema
    else:
        from pipeline.config.schema import json_schema

    output.data_json(json_schema())
