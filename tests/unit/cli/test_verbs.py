"""The tree of verbs: each is there and explains itself; the page fits a screen; a misspelt verb gets help."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from pipeline import __version__
from tests.support.command_line import app

TREE = """
    release plan lock refresh convert verify scan init doctor
    list show resolve diff report promote rollback yank keep run history
    store-create store-import store-sync store-prune store-scrub store-rescan store-usage store-rebuild
    store-metrics store-attach-profile store-lease-create store-lease-list store-lease-drop
    node-install node-check node-bench node-prewarm node-mount node-unmount node-hooks node-warm-here
    node-mount-for-job node-profile node-unpack
    cluster-init cluster-bootstrap cluster-config job-script registry-mirror
    ecr-apply ecr-policy ecr-trust
    attest-create attest-sign attest-verify squashfs-ls squashfs-cat cache-list cache-prune config-schema
    schedule-systemd schedule-cron ci-plan ci-check ci-publish
"""


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    below = getattr(command, "commands", None)
    if below is None:
        yield " ".join(path), command
        return
    assert command.help, path
    for name, one in below.items():
        yield from walk(one, (*path, name))


VERBS = dict(walk(typer.main.get_command(app)))


def sqshpipe(*words: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    argv = [sys.executable, "-m", "pipeline", *words]
    return subprocess.run(argv, capture_output=True, timeout=60, env={**kept, "COLUMNS": "80", **variables})


def test_the_tree_is_the_one_of_the_design() -> None:
    assert {name.replace(" ", "-") for name in VERBS} >= set(TREE.split())


@pytest.mark.parametrize("name", sorted(VERBS))
def test_a_verb_explains_itself_and_its_options_mean_what_they_mean_elsewhere(name: str) -> None:
    verb = VERBS[name]
    first = verb.help.partition("\n")[0]
    assert first
    assert first.endswith(".")
    options = {word: one.name for one in verb.params for word in one.opts if word.startswith("-")}
    assert options["-q"], options["-v"]
    assert options.get("--json", "as_json") == "as_json"
    assert options.get("--dry-run", "dry_run") == "dry_run"
    assert "--check" not in options or name in ("node prewarm", "node warm-here")
    platforms = [one.default for one in verb.params if one.name == "platform"]
    assert platforms in ([], [None]), "everywhere the default is this machine's"


def test_the_page_fits_one_screen() -> None:
    shown = sqshpipe("--help", NO_COLOR="1").stdout.decode()
    lines = shown.strip("\n ").splitlines()
    assert len(lines) <= 48  # of 50: the command line above, the prompt below
    assert max(map(len, lines)) <= 80
    for name in {name.split()[0] for name in VERBS} - {"ci"}:
        assert f"│ {name} " in shown
    assert " ci " not in shown


def test_colours_follow_what_the_page_is_printed_on() -> None:
    plain = sqshpipe("--help").stdout
    assert b"\x1b" not in plain
    assert b"\x1b" in sqshpipe("--help", FORCE_COLOR="1").stdout


@pytest.mark.parametrize("words", [[], ["cluster"], ["store", "lease"]], ids=["sqshpipe", "a group", "deep"])
def test_without_a_verb_the_help_is_shown_and_nothing_else(words: list[str]) -> None:
    done = sqshpipe(*words)
    assert (done.returncode, done.stderr) == (2, b"")
    assert done.stdout.strip() == sqshpipe(*words, "--help").stdout.strip()


@pytest.mark.parametrize(
    ("words", "wanted"), [(["reslove", "demo"], "'resolve'"), (["node", "instal"], "'install'")]
)
def test_a_misspelt_verb_gets_the_right_one(words: list[str], wanted: str) -> None:
    done = sqshpipe(*words)
    assert done.returncode == 2
    assert f"Did you mean {wanted}?" in done.stderr.decode()


def test_a_verb_that_only_we_call_works_and_is_not_shown() -> None:
    assert CliRunner().invoke(app, ["node", "warm-here", "--help"]).exit_code == 0
    assert "warm-here" not in sqshpipe("node", "--help").stdout.decode()


def test_the_version_is_printed() -> None:
    assert sqshpipe("--version").stdout.decode() == f"sqshpipe {__version__}\n"


@pytest.mark.parametrize("words", [["-q", "keep"], ["keep", "-q"]], ids=" ".join)
def test_quiet_stands_before_or_after_the_verb(words: list[str], released: Path) -> None:
    store = ["demo:v1", "--store", str(released / "store")]
    assert b"is kept" in sqshpipe("keep", *store).stderr
    done = sqshpipe(*words, *store)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"demo:v1\n", b"")


def test_a_tag_behind_the_name_gets_what_to_write(released: Path) -> None:
    done = sqshpipe("release", "demo:v2", "--config", str(released / "images.yaml"))
    assert done.returncode == 2
    assert b"sqshpipe release demo --tag v2" in done.stderr


def test_images_yaml_is_found_from_folders_below(released: Path) -> None:
    below = released / "dockerfiles" / "demo"
    below.mkdir(parents=True)
    argv = [sys.executable, "-m", "pipeline", "resolve", "demo"]
    root = str(Path(__file__).resolve().parents[3])
    env = {name: value for name, value in os.environ.items() if not name.startswith("SQSHPIPE_")}
    done = subprocess.run(
        argv, cwd=below, capture_output=True, text=True, env={**env, "PYTHONPATH": root}, timeout=60
    )
    assert done.stdout == f"{released / 'store' / 'demo' / 'v1.sqsh'}\n", done.stderr


@pytest.mark.parametrize("way", ["option", "variable"])
@pytest.mark.parametrize(
    "words", [["list"], ["resolve", "demo"], ["store", "usage"], ["report", "-o", "~/p.html"]]
)
def test_a_tilde_is_the_home_folder_in_every_verb(words: list[str], way: str, released: Path) -> None:
    more = ["--store=~/store"] if way == "option" else []
    variables = {} if way == "option" else {"SQSHPIPE_STORE": "~/store"}
    done = sqshpipe(*words, *more, HOME=str(released), **variables)
    assert done.returncode == 0, done.stderr
    assert not Path("~").exists()
