"""What patterns leave out: rows that moby/patternmatcher v0.6.1 and the walk of fsutil gave.

The rows that Docker 20.10 answers alike are compared with the real builder, in tests/integration.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.image.context import members
from pipeline.image.dockerignore import BadPatternError, Ignore

TREE = [
    "a/b/c.py",
    "a/b/d.txt",
    "a/e.py",
    "src/lib/util.py",
    "src/main.py",
    "foo",
    "xfoo",
    "bar/foo/baz",
    "bb",
    "b{2}",
    "x",
    "x|y",
    "p",
    "(p)",
    "a^b",
    "+",
    "new\nline",
    "tmp/x/",
    "src/node_modules/n/i.js",
]
SENT, LEFT_OUT = "sent", "left out"
ROWS = [
    (
        "*\n!**/*.py",
        SENT,
        ["a", "a/b", "a/b/c.py", "a/e.py", "src", "src/lib", "src/lib/util.py", "src/main.py"],
    ),
    ("**\n!src/main.py", SENT, ["src", "src/main.py"]),
    ("!a\na", LEFT_OUT, ["a", "a/b", "a/b/c.py", "a/b/d.txt", "a/e.py"]),
    ("a/b\n!a", LEFT_OUT, ["a/b", "a/b/c.py", "a/b/d.txt"]),
    ("**foo", LEFT_OUT, ["bar/foo", "bar/foo/baz", "foo", "xfoo"]),
    ("b{2}", LEFT_OUT, ["b{2}"]),
    ("b{2}*", LEFT_OUT, ["bb"]),
    ("x|y", LEFT_OUT, ["x|y"]),
    ("x|y*", LEFT_OUT, ["a/b/c.py", "a/e.py", "src/lib/util.py", "src/main.py", "x", "xfoo", "x|y"]),
    ("(p)", LEFT_OUT, ["(p)"]),
    ("(p)*", LEFT_OUT, ["(p)"]),
    ("+*", LEFT_OUT, ["+"]),
    ("a^b", LEFT_OUT, ["a^b"]),
    ("a^*", LEFT_OUT, []),
    ("**/node_modules/**\n!src/node_modules", LEFT_OUT, ["src/node_modules/n", "src/node_modules/n/i.js"]),
    ("**line", LEFT_OUT, ["new\nline"]),
    ("tmp/x\n!tmp/x/nothing", LEFT_OUT, ["tmp/x"]),
    ("**/", SENT, []),
    ("*\n!a/*/c.py", SENT, ["a", "a/b", "a/b/c.py"]),
    ("*\n!**/", LEFT_OUT, []),
    ("a/b/c.py\n!**/b", LEFT_OUT, ["a/b/c.py"]),
    ("**/b/*.py\n!a", LEFT_OUT, ["a/b/c.py"]),
    (
        "src\n!src/lib\nsrc/lib/util.py",
        LEFT_OUT,
        [
            "src/lib/util.py",
            "src/main.py",
            "src/node_modules",
            "src/node_modules/n",
            "src/node_modules/n/i.js",
        ],
    ),
    ("[[:alpha:]]", LEFT_OUT, ["a", "a/b", "a/b/c.py", "a/b/d.txt", "a/e.py", "p", "x"]),
    ("*\n![^a]*", LEFT_OUT, ["a", "a/b", "a/b/c.py", "a/b/d.txt", "a/e.py", "a^b"]),
    ("foo\r\n\r\nbar", LEFT_OUT, ["bar", "bar/foo", "bar/foo/baz", "foo"]),
    ("\ufefffoo", LEFT_OUT, ["foo"]),
    ("#foo\n #foo", LEFT_OUT, []),
    ("***", SENT, []),
    ("a/**/b", LEFT_OUT, ["a/b", "a/b/c.py", "a/b/d.txt"]),
    ("A\nFOO", LEFT_OUT, []),
    ("foo \t\n\u00a0bar", LEFT_OUT, ["bar", "bar/foo", "bar/foo/baz", "foo"]),
    ("!!a", LEFT_OUT, []),
    ("**/**/c.py", LEFT_OUT, ["a/b/c.py"]),
    ("**b", LEFT_OUT, ["a/b", "a/b/c.py", "a/b/d.txt", "a^b", "bb", "src/lib", "src/lib/util.py"]),
    ("a/../foo", LEFT_OUT, ["foo"]),
    ("//foo", LEFT_OUT, ["foo"]),
    (
        "src/*/..",
        LEFT_OUT,
        [
            "src",
            "src/lib",
            "src/lib/util.py",
            "src/main.py",
            "src/node_modules",
            "src/node_modules/n",
            "src/node_modules/n/i.js",
        ],
    ),
    (".", LEFT_OUT, []),
]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("context")
    for name in TREE:
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("1")
    return folder


@pytest.mark.parametrize(("text", "which", "wanted"), ROWS)
def test_rows(context: Path, text: str, which: str, wanted: list[str]) -> None:
    every = {path for path, _ in members(context, Ignore(patterns=()))}
    sent = {path for path, _ in members(context, Ignore.parse(text.encode()))}
    assert (sent if which == SENT else every - sent) == set(wanted)


@pytest.mark.parametrize("text", [row[0] for row in ROWS if "!" not in row[0]])
def test_a_single_path_is_judged_as_in_a_walk(context: Path, text: str) -> None:
    ignore = Ignore.parse(text.encode())
    sent = {path for path, _ in members(context, ignore)}
    for path, _ in members(context, Ignore(patterns=())):
        assert ignore.matches(path) == (path not in sent), path


@pytest.mark.parametrize(
    "text", ["!", "[", "a[", "[]", "[^]", "[-x]", "[x-]", "a\\", "[z-a]", "\\Q", "[\\b]", "?{2}{3}"]
)
def test_patterns_that_are_not_valid(text: str) -> None:
    with pytest.raises(BadPatternError):
        Ignore.parse(text.encode())


def test_many_stars_take_no_time() -> None:
    ignore = Ignore.parse(b"**/" * 30 + b"x?")
    assert not ignore.matches("/".join(["folder"] * 300))
