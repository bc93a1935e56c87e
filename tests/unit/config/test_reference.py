"""images.yaml's keys are described for people: each has a sentence, and sizes and times are readable."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.quantities import duration_text, parse_duration, parse_size, size_text
from pipeline.config.schema import json_schema

REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "configuration.md"


def _keys() -> dict[str, dict[str, Any]]:
    schema = json_schema()
    models = {"": schema, **schema["definitions"]}
    return {
        f"{name}.{key}": entry
        for name, model in models.items()
        for key, entry in model.get("properties", {}).items()
    }


def test_each_key_has_a_sentence_or_a_section_of_its_own() -> None:
    keys = _keys()
    assert len(keys) > 60
    bare = [key for key, entry in keys.items() if not entry.get("description") and "$ref" not in str(entry)]
    assert bare == []


def test_defaults_are_written_as_people_write_them() -> None:
    defaults = {key: entry.get("default") for key, entry in _keys().items()}
    assert defaults["LimitsModel.unpacked"] == "1T"
    assert defaults["ConvertModel.block_size"] == "128K"
    assert defaults["StoreModel.grace"] == "30d"
    assert defaults["SlurmModel.time"] == "2h"
    assert defaults["LimitsModel.entries"] == 8_000_000
    assert not [key for key, value in defaults.items() if re.match(r"PT?\d", str(value))]


def test_the_reference_describes_each_key_once() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", text, re.MULTILINE)
    keys = _keys()
    inherited = [key for key in keys if key.startswith("ImageSettings.")]
    assert len(rows) == len(keys) - len(inherited)
    assert all(what for _, what in rows)


@pytest.mark.parametrize("text", ["1s", "90m", "12h", "30d", "61s", "8d"])
def test_a_time_is_written_so_that_it_can_be_read_back(text: str) -> None:
    assert duration_text(parse_duration(text)) == text
    assert duration_text(timedelta(weeks=2)) == "14d"


@pytest.mark.parametrize("text", ["1", "1023", "4K", "1500K", "3M", "64G", "1T", "2000T"])
def test_a_size_is_written_so_that_it_can_be_read_back(text: str) -> None:
    assert size_text(parse_size(text)) == text
