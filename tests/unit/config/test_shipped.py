"""The images.yaml that the repository ships is valid, and says what its Dockerfiles expect."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pipeline.config.lock import read_lock, render_lock
from pipeline.config.reading import load
from pipeline.config.schema import json_schema

ROOT = Path(__file__).parents[3]


def test_shipped_file_loads_and_every_argument_is_in_its_dockerfile() -> None:
    config = load(ROOT / "images.yaml", environment={})
    assert set(config.images) == {"pytorch", "megatron-training"}
    assert config.image("pytorch").mirrored
    for spec in config.images.values():
        if spec.dockerfile is not None:
            known = set(re.findall(r"^ARG (\w+)", spec.dockerfile.read_text(), flags=re.MULTILINE))
            assert set(spec.build_args) <= known


def test_shipped_lock_is_as_the_program_writes_it() -> None:
    path = ROOT / "images.lock"
    assert path.read_text() == render_lock(read_lock(path))


def test_schema_knows_every_key_of_the_shipped_file() -> None:
    text = json.dumps(json_schema())
    for key in re.findall(r"^\s*(\w+):", (ROOT / "images.yaml").read_text(), flags=re.MULTILINE):
        if key not in {"pytorch", "TRANSFORMERS", "DATASETS", "WANDB", "DEEPSPEED"}:
            assert f'"{key}"' in text
