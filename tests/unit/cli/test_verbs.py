"""The verbs: that all are there, what the page that lists them looks like, what a misspelt one gets."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import typer
from typer import rich_utils
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.cli.verbs import PANELS, Verbs

NAMES = [name for rows in PANELS.values() for name, _, _ in rows]


def verbs() -> Verbs:
    made = typer.main.get_command(app)
    assert isinstance(made, Verbs)
    return made


def sqshpipe(*words: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    argv = [sys.executable, "-m", "pipeline", *words]
    return subprocess.run(argv, capture_output=True, timeout=60, env={**kept, "COLUMNS": "80", **variables})


def test_every_verb_is_where_the_list_says_and_explains_itself() -> None:
    made = verbs()
    made.load_all()
    assert set(NAMES) < set(made.commands)
    for name in NAMES:
        command = made.commands[name]
        below = getattr(command, "commands", {"": command})
        assert below, name
        for one in below.values():
            assert one.callback is not None, f"{name} {one.name} was not loaded"
            assert one.help, f"{name} {one.name} has no help"


@pytest.mark.parametrize("columns", [80, 100, 160])
def test_the_page_looks_as_the_help_of_each_verb_does(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What typer would draw with rich, all verbs loaded, is drawn without it."""
    monkeypatch.setenv("COLUMNS", str(columns))
    made = verbs()
    made.load_all()
    context = typer.Context(made, info_name="sqshpipe", help_option_names=["-h", "--help"])
    ours = made.get_help(context)
    rich_utils.rich_format_help(obj=made, ctx=context, markup_mode="markdown")
    theirs = capsys.readouterr().out
    assert [line.rstrip() for line in ours.strip().splitlines()] == [
        line.rstrip() for line in theirs.strip().splitlines()
    ]


def test_the_page_is_as_wide_as_the_terminal_and_lines_stay_whole() -> None:
    for columns in (60, 80, 132):
        shown = sqshpipe("--help", COLUMNS=str(columns)).stdout.decode().splitlines()
        assert {len(line) for line in shown if line[:1] in "│╭╰" and line} == {columns}


def test_colours_and_boxes_follow_what_they_are_drawn_on() -> None:
    plain = sqshpipe("--help").stdout
    assert b"\x1b" not in plain
    coloured = sqshpipe("--help", FORCE_COLOR="1").stdout
    assert b"\x1b[1;36mresolve\x1b[0m" in coloured
    assert sqshpipe("--help", FORCE_COLOR="1", NO_COLOR="1").stdout == plain
    narrow = sqshpipe("--help", PYTHONIOENCODING="ascii")
    assert narrow.returncode == 0
    assert b"+- Releases --" in narrow.stdout


@pytest.mark.parametrize("words", [[], ["cluster"]], ids=["sqshpipe", "a group"])
def test_without_a_verb_the_help_is_shown_and_nothing_else(words: list[str]) -> None:
    done = sqshpipe(*words)
    assert (done.returncode, done.stderr) == (2, b"")
    assert done.stdout.strip() == sqshpipe(*words, "--help").stdout.strip()


def test_a_misspelt_verb_gets_the_right_one() -> None:
    for words, wanted in ((["reslove", "demo"], "'resolve'"), (["cluster", "bootstrp"], "'bootstrap'")):
        done = sqshpipe(*words)
        assert done.returncode == 2
        assert f"Did you mean {wanted}?" in done.stderr.decode()


def test_a_verb_that_only_we_call_works_and_is_not_shown() -> None:
    done = CliRunner().invoke(app, ["warm-here", "--help"])
    assert done.exit_code == 0
    assert "warm-here" not in sqshpipe("--help").stdout.decode()
