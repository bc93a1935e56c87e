"""The JSON schema of images.yaml, from the models of `document`, for editors and for the reference."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pydantic import TypeAdapter

from pipeline.config.document import ImagesFile
from pipeline.config.quantities import duration_text, size_text

# SchemaStore takes drafts up to 7, and files that name themselves so.
_DIALECT = "http://json-schema.org/draft-07/schema#"
_ID = "https://www.schemastore.org/sqshpipe-{name}.json"
REFS = "#/definitions/{model}"


def json_schema() -> dict[str, Any]:
    """The JSON schema of images.yaml, for editors; sizes and times in it are written as people write them."""
    schema = as_file("images", ImagesFile.model_json_schema(ref_template=REFS))
    for model in (schema, *schema["definitions"].values()):
        for entry in model.get("properties", {}).values():
            _write_default(entry)
    return schema


def as_file(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """``schema`` of NAME.yaml, which pydantic made with ``REFS``, in the shape that SchemaStore takes."""
    head = {"$schema": _DIALECT, "$id": _ID.format(name=name), "title": f"sqshpipe {name}.yaml"}
    return {
        **head,
        "definitions": schema["$defs"],
        **{k: v for k, v in schema.items() if k not in ("$defs", "title")},
    }


def _write_default(entry: dict[str, Any]) -> None:
    """Write a default that is a size or a time as text: 128K instead of 131072, 30d instead of P30D."""
    default, sample = entry.get("default"), str((entry.get("examples") or [""])[0])
    if isinstance(default, dict):
        del entry["default"]  # each key below has its own
    elif isinstance(default, int) and sample.endswith(("K", "M", "G", "T")):
        entry["default"] = size_text(default)
    elif isinstance(default, str) and default.startswith("P") and sample.endswith(("m", "h", "d")):
        entry["default"] = duration_text(TypeAdapter(timedelta).validate_python(default))
