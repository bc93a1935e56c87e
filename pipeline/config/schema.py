"""The JSON schema of images.yaml, from the models of `document`, for editors and for the reference."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pydantic import TypeAdapter

from pipeline.config.document import ImagesFile
from pipeline.config.quantities import duration_text, size_text

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The JSON schema of images.yaml, for editors; sizes and times in it are written as people write them."""
    schema = ImagesFile.model_json_schema()
    for model in (schema, *schema["$defs"].values()):
        for entry in model.get("properties", {}).values():
            _write_default(entry)
    return {"$schema": DIALECT, **schema, "title": "sqshpipe images.yaml"}


def _write_default(entry: dict[str, Any]) -> None:
    """Write a default that is a size or a time as text: 128K instead of 131072, 30d instead of P30D."""
    default, sample = entry.get("default"), str((entry.get("examples") or [""])[0])
    if isinstance(default, dict):
        del entry["default"]  # each key below has its own
    elif isinstance(default, int) and sample.endswith(("K", "M", "G", "T")):
        entry["default"] = size_text(default)
    elif isinstance(default, str) and default.startswith("P") and sample.endswith(("m", "h", "d")):
        entry["default"] = duration_text(TypeAdapter(timedelta).validate_python(default))
