"""What would run and why; what images.yaml may say; which digests the bases stand for."""

from __future__ import annotations

import typer

from pipeline.cli import output


def register(app: typer.Typer) -> None:
    """Add ``schema`` to ``app``."""
    app.command()(schema)


def schema() -> None:
    """Print the JSON schema of images.yaml, for editors."""
    from pipeline.config.document import json_schema

    output.data_json(json_schema())
