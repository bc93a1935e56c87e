"""The story on stderr: what is said, what is counted, what stays out."""

import json

import pytest
import structlog

from pipeline.cli import logs, output
from pipeline.cli.progress import ConsoleProgress
from pipeline.errors import ConfigError


def _configure(*, quiet=False, json_log=False):
    output.configure(quiet=quiet, verbose=False, json_log=json_log)
    logs.begin()


@pytest.fixture(autouse=True)
def _plain_log():
    _configure()
    yield
    structlog.reset_defaults()


def test_one_plain_line_a_stage_where_nobody_watches(capsys):
    console = ConsoleProgress()
    with console.stage("push") as task:
        task.total(2_000)
        task.advance(2_000)
        console.result("sha256:abc")
    console.skip("build", "the registry has this image")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["push     sha256:abc  (0.0 s, 2.0 kB)", "build    skipped: the registry has this image"]


def test_json_lines_carry_run_image_and_stage(capsys):
    _configure(json_log=True)
    with structlog.contextvars.bound_contextvars(run="r1", image="demo"), ConsoleProgress().stage("pin"):
        pass
    line = json.loads(capsys.readouterr().err)
    assert (line["run"], line["image"], line["stage"], line["event"]) == ("r1", "demo", "pin", "done")


def test_a_failed_stage_is_marked_and_not_called_done(capsys):
    console = ConsoleProgress()
    with pytest.raises(ConfigError), console.stage("pin"):
        raise ConfigError("no")
    assert console.as_json()[0]["outcome"] == "failed"
    assert capsys.readouterr().err == ""


def test_control_characters_of_a_hostile_name_are_escaped(capsys):
    output.failure(ConfigError("no file \x1b[2Jname\nsqshpipe: all is well", hint="look\x07"))
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert "\x07" not in err
    assert "\nsqshpipe: all is well" not in err


def test_quiet_shows_errors_only(capsys):
    _configure(quiet=True)
    with ConsoleProgress().stage("pin"):
        pass
    output.failure(ConfigError("broken"))
    assert capsys.readouterr().err == "sqshpipe: broken\n"


def _on_a_terminal(monkeypatch, columns):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))


def test_lines_break_at_words_to_a_terminals_width(monkeypatch):
    _on_a_terminal(monkeypatch, 40)
    line = "pin      127.0.0.1/base/python:24.01-py3 is sha256:1, locked  (2.3 s)"
    assert output.fitted(line).split("\n") == [
        "pin      127.0.0.1/base/python:24.01-py3",
        "         is sha256:1, locked  (2.3 s)",
    ]


def test_wide_characters_count_twice_and_a_long_word_stays_whole(monkeypatch):
    _on_a_terminal(monkeypatch, 40)
    assert output.fitted("build    한국어 한국어 한국어 한국어 한국어").split("\n") == [
        "build    한국어 한국어 한국어 한국어",
        "         한국어",
    ]
    path = "/fsx/containers/" + "a" * 60
    assert output.fitted(f"publish  {path}") == f"publish  {path}"


def test_nothing_is_broken_where_nobody_watches(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert output.fitted("word " * 30) == "word " * 30


def _drawn(total):
    from rich.console import Console
    from rich.progress import Progress

    from pipeline.cli.bars import columns

    progress = Progress(*columns(), console=Console(width=80))
    progress.update(progress.add_task("push", total=total), advance=180_000_000)
    with progress.console.capture() as captured:
        progress.console.print(progress.get_renderable())
    return captured.get()


def test_a_bar_is_drawn_once_the_bytes_are_known():
    assert "━" not in _drawn(None)
    assert ":" in _drawn(None)
    assert "180.0/360.0 MB" in _drawn(360_000_000)
    assert "━" in _drawn(360_000_000)
