"""What must not be loaded: by small verbs, which run inside job scripts, and where there is nothing to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"structlog", "pydantic", "httpx", "docker", "boto3", "botocore", "rich", "asyncio", "jinja2", "yaml"}
# What every start loads, and the module of the verb itself.
START = {"app", "completion", "help_page", "options", "output", "streams", "variables", "verbs"}
# Configuration, registry and words are needed to see that nothing has to be done.
IDLE = HEAVY - {"docker", "boto3", "botocore", "jinja2"}


def started(words: list[str], folder: Path) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """A verb's end, and all modules that were loaded by then."""
    program = (
        f"import sys; sys.argv[1:] = {words!r}\n"
        "from pipeline.cli import app\n"
        "code = 0\n"
        "try: app.main()\n"
        "except SystemExit as end: code = end.code\n"
        "print(*sorted(sys.modules), file=sys.stderr)\n"
        "sys.exit(code)"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SQSHPIPE_")}
    environment = {**kept, "SQSHPIPE_CACHE": str(folder / "cache")}
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=environment)
    return done, set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("words", "own"),
    [
        (["resolve", "demo"], {"store"}),
        (["list"], {"store", "showing"}),
        (["--help"], set()),
        (["-h"], set()),
        ([], set()),
    ],
    ids=["resolve", "list", "help", "h", "nothing"],
)
def test_small_verbs_load_little(words: list[str], own: set[str], tmp_path: Path) -> None:
    store = ["--store", str(tmp_path)] if own else []
    _, loaded = started([*words, *store], tmp_path)
    assert not loaded & HEAVY
    verbs = {name.removeprefix("pipeline.cli.") for name in loaded if name.startswith("pipeline.cli.")}
    assert verbs <= START | own


def test_a_story_is_told_without_rich(tmp_path: Path) -> None:
    done, loaded = started(["plan", "--config", str(tmp_path / "images.yaml")], tmp_path)
    assert done.returncode == 2
    assert "structlog" in loaded
    assert not {name for name in loaded if name.partition(".")[0] in ("rich", "pygments")}


def test_an_image_that_is_published_loads_neither_engine_nor_converter(released: Path) -> None:
    words = ["release", "demo", "--tag", "v1", "--config", str(released / "images.yaml")]
    done, loaded = started(words, released)
    assert (done.returncode, "demo:v1 is published and nothing changed" in done.stderr) == (0, True)
    assert done.stdout == f"{released / 'store' / 'demo' / 'v1.sqsh'}\n"
    assert loaded & HEAVY <= IDLE
    assert not {name for name in loaded if name.startswith(("pipeline.convert.", "pipeline.scan."))}
    assert "pipeline.image.build" not in loaded
    assert not {name for name in loaded if name.startswith("pipeline.squashfs")}
