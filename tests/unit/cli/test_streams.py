"""Standard streams that are closed, full, or of a locale that cannot show what is printed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import streams
from pipeline.store.store import Store
from tests.support.store.releases import new_store, publish

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LOCALES = {
    "ascii": ASCII,
    "latin-1": {"PYTHONIOENCODING": "iso-8859-1"},
    "euc-kr": {"PYTHONIOENCODING": "euc_kr"},
    "cp949": {"PYTHONIOENCODING": "cp949"},
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    made = new_store(tmp_path / "store")
    publish(made, "v1")
    publish(made, "v2")
    made.mark("demo:v1", "yank", reason="größer → 큰 \U0001f600")
    return made.root


def shell(redirected: str, *words: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """The command line with the shell's redirections, such as ``>&-``."""
    script = f'exec "$@" {redirected}'
    argv = ["bash", "-c", script, "bash", sys.executable, "-m", "pipeline", *words]
    return subprocess.run(argv, capture_output=True, timeout=60, env={**os.environ, **variables})


VERBS = [
    ["list"],
    ["show", "demo:v2"],
    ["resolve", "demo:v2"],
    ["store", "usage"],
    ["store", "lease", "list"],
    ["store", "prune", "--no-slurm"],
]


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_closed_streams_end_quietly_and_do_the_work(words: list[str], store: Path) -> None:
    for redirected in (">&-", "2>&-", "<&-", "<&- >&- 2>&-"):
        done = shell(redirected, *words, "--store", str(store))
        assert done.returncode == 0, (redirected, done.stderr)
        assert b"Traceback" not in done.stderr
        assert b"defect" not in done.stderr


def test_a_closed_stdout_is_not_the_next_file_that_is_opened(store: Path) -> None:
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    assert shell("<&- >&- 2>&-", "store", "rebuild", "--store", str(store)).returncode == 0
    after = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    assert before.keys() <= after.keys()
    assert not any(str(store).encode() in content for content in after.values())


@pytest.mark.parametrize(
    "words", [*VERBS, ["--help"], ["list", "--help"], ["config", "schema"]], ids=" ".join
)
def test_a_stdout_that_takes_nothing_is_a_sentence(words: list[str], store: Path) -> None:
    own = ["--store", str(store)] if words in VERBS else []
    for redirected in (">/dev/full", "1</dev/null"):
        done = shell(redirected, *words, *own)
        if words == ["store", "lease", "list"]:  # prints nothing, and so loses nothing
            assert done.returncode == 0
            continue
        assert done.returncode == 3, (redirected, done.stderr)
        assert re.match(rb"sqshpipe: (the result cannot be written to stdout|a disk is full): ", done.stderr)
        assert b"Traceback" not in done.stderr
        assert b"defect" not in done.stderr


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_a_stderr_that_takes_nothing_changes_nothing(words: list[str], store: Path) -> None:
    done = shell("2>/dev/full", *words, "--store", str(store))
    assert done.returncode == 0
    assert shell("2>/dev/full", "show", "no:such", "--store", str(store)).returncode == 2


@pytest.mark.parametrize("locale", LOCALES)
def test_what_the_terminal_cannot_show_is_escaped(locale: str, store: Path, tmp_path: Path) -> None:
    variables = LOCALES[locale]
    words = ["--store", str(store)]
    shown = shell("", "show", "demo:v1", *words, **variables)
    assert shown.returncode == 0, shown.stderr
    assert b"state" in shown.stdout
    reported = shell("", "show", "demo:v1", "--json", *words, **variables)
    assert reported.stdout.isascii()
    assert json.loads(reported.stdout)["image"] == "demo"
    compared = shell("", "diff", "demo:v1", "demo:v2", *words, **variables)
    assert compared.returncode == 0, compared.stderr
    assert b"demo:v1" in compared.stdout
    assert shell("", "--help", **variables).returncode == 0
    assert shell("", "diff", "--help", **variables).returncode == 0
    made = shell("", "report", "-o", str(tmp_path / "page.html"), *words, **variables)
    assert made.returncode == 0, made.stderr
    assert "큰" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("locale", ["utf-8", *LOCALES])
def test_a_path_that_is_no_text_reaches_a_script_as_it_is(locale: str, tmp_path: Path) -> None:
    root = os.fsencode(tmp_path) + b"/st\xe9\x9bre"
    publish(Store(Path(os.fsdecode(root))), "v1")
    done = shell("", "resolve", "demo:v1", "--store", os.fsdecode(root), **LOCALES.get(locale, {}))
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip(b"\n").endswith(b"v1.sqsh")
    assert Path(os.fsdecode(done.stdout.rstrip(b"\n"))).exists()
    listed = shell(
        "", "store", "lease", "create", "no:such", "--store", os.fsdecode(root), **LOCALES.get(locale, {})
    )
    assert listed.returncode == 2
    assert b"\\xe9\\x9b" in listed.stderr
    assert b"\x9b" not in listed.stderr


def test_one_module_prints() -> None:
    """Who writes around `output` prints what others wrote as it is."""
    package = Path(streams.__file__).parents[1]
    doors = {"cli/output.py", "cli/streams.py", "cli/progress.py"}
    children = {
        "node/run.py",
        "node/enter.py",
        "node/pyxis_importer.py",
    }  # programs of their own
    writes = re.compile(
        r"\bprint\(|sys\.std(out|err)\.(write|buffer)|typer\.s?echo\(|\bConsole\(|os\.write\([12],"
    )
    code = {
        str(path.relative_to(package)): path.read_text(encoding="utf-8") for path in package.rglob("*.py")
    }
    found = {name for name, text in code.items() if writes.search(re.sub(r'"""(.|\n)*?"""', "", text))}
    assert found - doors - children == set()
