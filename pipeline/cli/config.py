"""images.yaml itself."""

from __future__ import annotations

from pipeline.cli import output
from pipeline.cli.verbs import Verbs

config = Verbs("images.yaml itself.")


@config.command()
def schema() -> None:
    """Print the JSON schema of images.yaml, for editors."""
    from pipeline.config.document import json_schema

    output.data_json(json_schema())
