"""README and tutorial: every command block is run as printed, except for addresses and folders.

`make test` is only shown by make, since this is a part of it, and srun is a program that checks whether the
container image is a published file.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.engine import PrivateEngine
from demo.registry import PrivateRegistry
from pipeline.oci.reference import Reference

ROOT = Path(__file__).parents[2]
PAGES = sorted(path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

SRUN = """#!/bin/sh
image=${1#--container-image=}
[ "$(head -c 4 "$image")" = hsqs ] || { echo "srun: $1 is no image" >&2; exit 1; }
"""
MAKE = """#!/bin/sh
[ "$1" = test ] && set -- -n "$@"
exec /usr/bin/make "$@"
"""


def _blocks(page: Path) -> str:
    return "\n".join(
        re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    )


def _checkout(folder: Path) -> Path:
    """A copy of what git knows and would know, whose .venv is this one, and programs that stand in."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy2(ROOT / name, target)
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    texts = {
        "python": f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n',
        "sqshpipe": f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} -m pipeline "$@"\n',
        "srun": SRUN,
        "make": MAKE,
    }
    for name, text in texts.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    for stamp in (".installed", ".installed[dev]"):
        (folder / ".venv" / stamp).touch()
    return folder


@pytest.mark.needs("dockerd", "docker-registry", "mksquashfs", "root", "make", "git")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["README.md", "README.ko.md", "docs/tutorial.md"])
def test_every_block_runs(
    name: str, engine: PrivateEngine, registry: PrivateRegistry, base: Reference, tmp_path: Path
) -> None:
    checkout = _checkout(tmp_path / "checkout")
    script = _blocks(ROOT / name)
    assert script.count("\n") > 5
    prefix = f"{registry.address}/{tmp_path.name.lower()}"
    for written, meant in (
        ("/fsx/containers", str(tmp_path / "store")),
        ("registry.example.com/team", prefix),
        ("nvcr.io/nvidia/pytorch:24.01-py3", str(base)),
    ):
        script = script.replace(written, meant)
    if name == "README.ko.md":  # the English one runs the demo
        script = script.replace("make demo", "make help")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SQSHPIPE_")}
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", script],
        cwd=checkout,
        stdin=subprocess.DEVNULL,  # a shell that is opened ends at once
        env={
            **kept,
            **registry.variables,
            "SQSHPIPE_REGISTRY": prefix,
            "DEMO_BASE": str(base),  # the shell that would set it ends at once
            "DOCKER_HOST": engine.host,
            "PATH": f"{checkout}/.venv/bin:{os.environ['PATH']}",
            "SQSHPIPE_CACHE": str(tmp_path / "cache"),
            "SQSHPIPE_SCRATCH": str(tmp_path / "scratch"),
        },
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name} links to {target}"
        if anchor:
            heads = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {
                re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in heads
            }


def test_the_reference_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def _reference() -> dict[str, set[str]]:
    """Each command with its options, as the reference has them."""
    parts = (ROOT / "docs/reference/commands.md").read_text().split("\n## sqshpipe ")[1:]
    split = (part.partition("\n") for part in parts)
    everywhere = {"--help", "-q", "--quiet", "-v", "--verbose"}
    return {name: {*everywhere, *re.findall(r"(?<![\w-])--?[a-z][\w-]*", said)} for name, _, said in split}


def _calls(page: Path) -> Iterator[str]:
    """What stands after `sqshpipe` in blocks and in words, to its end."""
    text = page.read_text(encoding="utf-8")
    fence = re.compile(r"^ *```[a-z]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
    codes = [*fence.findall(text), *re.findall(r"(?<!`)`([^`]+)`(?!`)", fence.sub("", text))]
    for line in (line for code in codes for line in code.splitlines()):
        for call in re.findall(r"\bsqshpipe ((?!-)[^|)#;&·]+)", line):
            yield re.split(r" -- |  +|\bthen: ", call)[0]


def test_the_commands_and_options_that_documents_name_are_there() -> None:
    known, seen = _reference(), 0
    groups = {name.rsplit(" ", depth)[0] for name in known for depth in range(1, name.count(" ") + 1)}
    for page in PAGES:
        for call in _calls(page):
            words = call.split()
            if not words or not re.fullmatch(r"[a-z][a-z-]+", words[0]):
                continue
            depth = 1
            while " ".join(words[:depth]) in groups and depth < len(words):
                depth += 1
            name = " ".join(words[:depth])
            where = f"{page.relative_to(ROOT)}: sqshpipe {call}"
            if name not in known and " ".join(words[: depth - 1] or words) in groups:
                assert name in groups or not re.fullmatch(r"[a-z-]+", words[depth - 1]), where
                continue
            assert name in known, where
            assert set(re.findall(r"(?<!\S)--?[a-z][\w-]*", call)) <= known[name], where
            seen += 1
    assert seen > 100


def test_a_document_says_who_needs_each_option() -> None:
    """An option that no page needs is dropped, or gets its sentence in docs/explanation/options.md."""
    pages = [page for page in PAGES if "reference" not in page.parts]
    templates = [*(ROOT / ".github/workflows").glob("*.yml"), *(ROOT / "pipeline").rglob("*.j2")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in (*pages, *templates))
    part = (ROOT / "docs/reference/commands.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(--?[^`]+)` \|", part, re.MULTILINE)
    assert len(rows) > 150
    options = {row: [name for name in row.split(", ") if name.startswith("--")] for row in rows}
    missing = [
        row
        for row, names in options.items()
        if not any(re.search(rf"{re.escape(name)}(?![\w-])", text) for name in names)
    ]
    assert missing == []
