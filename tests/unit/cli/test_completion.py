"""What Tab offers, asked for as bash asks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.store.store import Store
from tests.support.store import releases
from tests.support.store.releases import new_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = new_store(tmp_path / "store")
    for version in ("v1.0", "v1.1"):
        releases.publish(made, version)
    releases.publish(made, "v2.0", image="other")
    made.promote("demo:v1.0", "stable")
    return made


@pytest.mark.parametrize("option", ["--show-completion", "--install-completion"])
def test_a_shell_that_typer_does_not_know(option: str, tmp_path: Path) -> None:
    """It ended with 1, the code of a defect, and said nothing of what to do."""
    ours = "from pipeline.cli.app import main; main()"
    there = "import shellingham; shellingham.detect_shell = lambda: ('tcsh', 'tcsh')"
    words = [sys.executable, "-c", f"{there}; {ours}"]
    home = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run([*words, option], env=home, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stdout
    assert "there is no completion for this shell" in done.stderr
    assert "Traceback" not in done.stderr


def _tab(words: str, folder: Path, **variables: str) -> list[str]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SQSHPIPE_")},
        "_SQSHPIPE_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
        **variables,
    }
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from pipeline.cli import tree; tree.command_line()(prog_name='sqshpipe')",
        ],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_images_then_versions_and_channels(store: Store, tmp_path: Path) -> None:
    root = str(store.root)
    assert _tab("sqshpipe resolve ", tmp_path, SQSHPIPE_STORE=root) == ["demo", "other"]
    expected = ["demo:latest", "demo:stable", "demo:v1.1", "demo:v1.0"]
    assert _tab("sqshpipe show demo:", tmp_path, SQSHPIPE_STORE=root) == expected
    assert _tab("sqshpipe diff demo:v1.0 demo:v", tmp_path, SQSHPIPE_STORE=root) == expected[2:]
    assert _tab(f"sqshpipe resolve --store {root} oth", tmp_path) == ["other"]
    assert _tab("sqshpipe promote demo:v1.1 s", tmp_path, SQSHPIPE_STORE=root) == ["stable"]


def test_images_and_store_of_images_yaml(store: Store, tmp_path: Path) -> None:
    text = (
        f"version: 1\nstore: {{root: {store.root}}}\nimages:\n  first:\n    base: a\n  second:\n    base: b\n"
    )
    (tmp_path / "images.yaml").write_text(text)
    assert _tab("sqshpipe plan ", tmp_path) == ["first", "second"]
    assert _tab("sqshpipe resolve d", tmp_path) == ["demo"]


def test_verbs_and_those_of_a_group(tmp_path: Path) -> None:
    assert _tab("sqshpipe re", tmp_path) == ["release", "refresh", "resolve", "report", "registry"]
    assert _tab("sqshpipe cluster b", tmp_path) == ["bootstrap"]
    assert _tab("sqshpipe warm", tmp_path) == []


def test_nothing_to_offer_is_no_error(tmp_path: Path) -> None:
    assert _tab("sqshpipe resolve d", tmp_path) == []
    assert _tab("sqshpipe plan d", tmp_path, SQSHPIPE_CONFIG=str(tmp_path)) == []
