"""Hostile text through every verb: whatever others wrote moves no cursor, makes no line, gives no orders.

Stores, leases, settings, registries, tools, file names and arguments are full of `FIELD`; each verb of the
command line runs over them, as text, as JSON and within GitHub Actions.
"""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.support.command_line import app
from tests.support.faults import hostile_text
from tests.support.faults.hostile_text import FAKE, FIELD, NAME
from tests.support.images.squashfs import Stitcher

FILE = os.fsdecode(NAME)
ARGUMENT = FIELD + FILE[-2:]

# What each verb gets. S and E are hostile stores, D the store that sync fills, C images.yaml, Q a .sqsh with
# hostile names, F a file of a hostile name, P a folder to write to, X hostile text.
CASES: dict[str, list[str]] = {
    "release": [
        *("demo -t v9 --config C", "plain -t v9 --config C", "X -t X --config C", "--all -t v9 --config C"),
        *("demo --until build --config C", "X --until build --config C", "demo:X --config C"),
        *("demo --until push --config C", "plain --until push --config C"),
    ],
    "convert": ["docker://R/base:1 -o P/o.sqsh", "oci:L -o P/o.sqsh", "oci:L:X -o P/o.sqsh", "X -o P/X"],
    "verify": ["Q oci:L", "F docker://R/base:1", "X X"],
    "scan": ["demo --config C", "X --config C"],
    "plan": ["--config C", "X --config C", "--changed-since X --config C", "--tag X --config C"],
    "lock": ["--config C", "--dry-run --config C", "X --config C"],
    "config schema": [""],
    "refresh": ["--config C --store S", "--dry-run --config C", "--branch X --config C"],
    "schedule systemd": ["--config C --store S", "--config X --store X --registry X"],
    "schedule cron": ["--config C --store S", "--config X --store X --registry X"],
    "list": [
        *("--store S", "--all --store S", "demo --all --store S", "X --store S", "--store E"),
        *("de*:v? --store S", "--channel X --store S", "--limit 1 --store S"),
    ],
    "show": [
        *("demo:v1 --store S", "demo:v2 --store S", "demo:v3 --store S", "long:v1 --store S"),
        *("broken:v1 --store S", "demo:v1 --store E", "X --store S", "demo:X --store S"),
    ],
    "resolve": [
        "demo:v2 --store S",
        "demo:stable --store S",
        "demo:v3 --store S",
        "demo:X --store S",
        "X --store S",
    ],
    "promote": ["demo:v1 X --store S", "X stable --store S", "demo:v1 stable --reason X --store S"],
    "rollback": ["demo stable --reason X --store S", "X X --store S"],
    "yank": ["demo:v1 --reason X --store S", "X --store S", "X:X --store S"],
    "keep": ["demo:v1 --reason X --store S", "X --store S"],
    "history": ["demo --store S", "demo:v1 --store S", "X --store S", "broken --store S", "demo --store E"],
    "store create": ["--store X", "P/store", "F"],
    "store import": [
        *("F --as demo:v9 --store D", "F --as X --store D", "Q --as demo:X --store D"),
        *("F --store D", "F --dry-run --store D", "F Q X --store D", "F --move --as demo:v8 --store D"),
    ],
    "store lease create": ["demo:v2 --store S", "X --store S"],
    "store lease list": ["--store S", "--store E"],
    "store lease drop": ["X --store S"],
    "store prune": [
        "--dry-run --no-slurm --keep 1 --store S",
        "--dry-run --store S",
        "--dry-run --no-slurm --store E",
    ],
    "store scrub": ["--store S", "demo --store S", "X --store S", "--full --store S"],
    "store rescan": ["--config C --store S", "X --store S"],
    "store usage": ["--store S", "demo --store S", "X --store S"],
    "store metrics": ["--store S", "--store E", "-o F/x --store S", "--store X"],
    "store sync": ["S D", "S D --only X", "S D --channel X", "X D", "S X", "S D --dry-run"],
    "store attach-profile": ["demo:v2 F --store S", "demo:v2 X --store S", "X F --store S"],
    "store rebuild": ["--store S", "--store E", "--store X", "--layers --store S"],
    "attest create": ["demo:v2 --store S --config C", "X --store S"],
    "attest sign": ["demo:v2 --key X --store S", "demo:v2 --key F --store S"],
    "attest verify": ["demo:v2 --key X --store S", "X --key F --store S"],
    "run": ["X --store S", "F", "demo:v3 --store S"],
    "node mount": ["X --store S", "demo:X --store S", "F"],
    "node unpack": ["Q", "F", "X --store S"],
    "node unmount": ["X --store S"],
    "node prewarm": [
        *("X --store S --nodes X", "demo:v2 --store S --nodes X", "demo:v2 --store S --local F"),
    ],
    "node install": ["--prefix P/i --store S --cluster-name X", "--prefix P/i --store X --missing X"],
    "node hooks": ["-o P/hooks --settings X --command X", "-o F"],
    "node mount-for-job": [
        "X --job X --user X",
        "X --job 1 --user 1:1 --settings F",
        "X --job 1 --user 1:1 --settings X",
    ],
    "node check": ["Q", "F", "X --store S"],
    "node profile": ["Q -o P/p.json -- X", "F -o X -- true", "X --store S -- X", "Q -- X"],
    "node bench": ["Q", "F", "X --store S"],
    "node warm-here": [
        "X --digest X --local X --state X",
        "Q --digest X --local P/l --state P/s",
        "Q --digest X --startup X",
    ],
    "cluster init": ["-o P/cluster.yaml", "-o F", "--for X"],
    "cluster bootstrap": ["--values F", "--values V", "--values X"],
    "cluster config": ["--values F", "--values V", "--values X"],
    "job script": ["demo:v2 X --store S", "X X --store S", "demo:v2 true --name X --store S --sbatch X"],
    "registry mirror": ["--config C", "X --config C"],
    "ecr apply": ["--config C", "X --config C"],
    "ecr policy": ["X --config C"],
    "ecr trust": ["X --account X", "a/b --account 123456789012 --ref X"],
    "ci plan": ["--config C"],
    "ci check": ["demo -t v9 --config C", "X -t X --config C"],
    "ci publish": ["demo -t v9 --reference X --config C", "demo -t X --reference R/base:1 --config C"],
    "report": ["-o P/page.html --store S", "-o F --store S", "-o X/X --store S"],
    "diff": [
        "demo:v1 demo:v2 --store S",
        "long:v1 long:v2 --store S",
        "demo:v1 broken:v1 --store S",
        "X X --store S",
    ],
    "squashfs ls": ["Q", "Q -R", "Q X", "F", "X --store S", "demo:v2 --store S"],
    "squashfs cat": ["Q X", "F X", "Q /X", "X X --store S"],
    "cache list": ["", "--config C", "--config F"],
    "cache prune": ["--max-size X", "--max-age X", "--max-size 0 --dry-run"],
    "doctor": ["--config C", "--config F", "--config X", "--config C --store X"],
    "init": ["X", "demo --folder F", "demo --base X"],
}
_PRINTS_BYTES = {"squashfs cat Q /X"}  # a file's own bytes, as they are: what a caller asks for
MODES = {
    "json": (["--log-format", "json"], ["--json"], {}),
    "actions": (["-v"], [], {"GITHUB_ACTIONS": "true"}),
}


def _walk(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    below = getattr(command, "commands", None)
    if below is None:
        yield name, command
        return
    for one, each in below.items():
        yield from _walk(each, f"{name} {one}".strip())


def _verbs() -> dict[str, bool]:
    """Every verb of the command line, and whether it takes --json."""
    found = dict(_walk(typer.main.get_command(app), ""))
    return {name: any("--json" in one.opts for one in each.params) for name, each in found.items()}


VERBS = _verbs()


def test_every_verb_has_a_case() -> None:
    assert sorted(CASES) == sorted(VERBS)


class Place:
    """A folder that is full of hostile text, and what the letters in `CASES` stand for."""

    def __init__(self, folder: Path, registry: str) -> None:
        self.folder = folder
        store = hostile_text.hostile_store(folder / "store").root
        settings = hostile_text.hostile_settings(folder, registry, store)
        hostile_text.hostile_tools(folder / "bin")
        image = Stitcher(folder / "stitched").file(NAME, FIELD.encode())
        image.symlink(b"link" + NAME[:200], NAME).folder(b"folder" + NAME[:200])
        image.file(ARGUMENT.encode("utf-8", "surrogateescape")[:200].replace(b"/", b"|"), FIELD.encode())
        squashed = image.stitch()
        file = folder / FILE
        file.write_bytes(FIELD.encode() + NAME)
        values = folder / "cluster.yaml"
        values.write_text(json.dumps({"name": FIELD, "store": FIELD, FIELD: FIELD}))
        layout = folder / "layout"
        layout.mkdir()
        (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        kind = "application/vnd.oci.image.manifest.v1+json"
        notes = {"org.opencontainers.image.ref.name": FIELD, FIELD: FIELD}
        entry = {"mediaType": kind, "digest": "sha256:" + "a" * 64, "size": 5, "annotations": notes}
        index = {"schemaVersion": 2, "manifests": [entry, entry | {"digest": FIELD}]}
        (layout / "index.json").write_text(json.dumps(index))
        self.places = {
            "S": str(store),
            "E": str(hostile_text.store_with_a_hostile_event(folder / "events").root),
            "D": str(folder / "copied"),
            "C": str(settings),
            "Q": str(squashed),
            "F": str(file),
            "P": str(folder / "made"),
            "V": str(values),
            "L": str(layout),
            "R": registry,
            "X": ARGUMENT,
        }
        (folder / "made").mkdir()
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("GITHUB_", "SQSHPIPE_", "AWS_"))
        } | {
            "PATH": str(folder / "bin"),
            "HOME": str(folder),
            "TMPDIR": str(folder / "made"),
            "SQSHPIPE_CACHE": str(folder / "cache"),
            "PYTHONPATH": str(Path(__file__).parents[3]),
            "AWS_EC2_METADATA_DISABLED": "true",
            "DOCKER_HOST": "unix:///nowhere",
        }

    def run(self, verb: str, case: str, mode: str) -> subprocess.CompletedProcess[bytes]:
        first, last, variables = MODES[mode]
        words = [
            *verb.split(),
            *(self._word(word) for word in case.split()),
            *(last if VERBS[verb] else []),
        ]
        argv = [sys.executable, "-m", "pipeline", *first, *words]
        return subprocess.run(
            argv,
            capture_output=True,
            cwd=self.folder / "made",
            env=self.environment | variables,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )

    def _word(self, word: str) -> str:
        letter = re.compile(r"(?<![A-Za-z0-9])([SEDCQFPVLRX])(?![A-Za-z0-9])")
        return letter.sub(lambda found: self.places[found[0]], word)


@pytest.fixture(scope="module", params=["errors", "challenge", "manifests"])
def registry(request: pytest.FixtureRequest) -> Iterator[str]:
    with hostile_text.hostile_registry(request.param) as address:
        yield address


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with hostile_text.hostile_registry("errors") as address:
        yield Place(tmp_path_factory.mktemp("hostile"), address)


def check(printed: bytes, what: str) -> None:
    """No control or invisible character, no line of theirs, no order to GitHub's runner."""
    text = printed.decode("utf-8")  # not UTF-8: bytes that a terminal may heed
    lines = text.split("\n")
    for line in lines:
        assert line.isprintable(), f"{what} prints {line[:300]!r}"
        assert not line.lstrip().startswith((FAKE, "::")), f"{what} prints {line[:300]!r}"


def check_run(done: subprocess.CompletedProcess[bytes], what: str, mode: str) -> None:
    assert b"this is a defect" not in done.stderr, f"{what}: {done.stderr.decode(errors='replace')[-3000:]}"
    assert b"Traceback" not in done.stderr, f"{what}: {done.stderr.decode(errors='replace')[-3000:]}"
    assert done.returncode in (0, 2, 3, 4, 5, 6, 7, 8, 10, 126, 127), f"{what} ends with {done.returncode}"
    if what not in _PRINTS_BYTES:
        check(done.stdout, f"{what} on stdout")
    check(done.stderr, f"{what} on stderr")
    if mode == "actions" and what not in _PRINTS_BYTES:
        assert b"##[" not in done.stdout + done.stderr
    if mode == "json":
        for line in done.stderr.decode().splitlines():
            assert isinstance(json.loads(line), dict), f"{what}: {line}"


@pytest.mark.parametrize("verb", CASES)
def test_text_of_others_is_text(verb: str, place: Place) -> None:
    for case in CASES[verb]:
        check_run(place.run(verb, case, "actions"), f"{verb} {case}".strip(), "actions")


@pytest.mark.parametrize("verb", [verb for verb in CASES if VERBS[verb]])
def test_json_holds_text_of_others_as_text(verb: str, place: Place) -> None:
    for case in CASES[verb][:2]:
        done = place.run(verb, case, "json")
        check_run(done, f"{verb} {case}".strip(), "json")
        if done.stdout:
            json.loads(done.stdout)


@pytest.mark.parametrize(
    "verb", ["plan", "lock", "registry mirror", "release", "convert", "doctor", "ci check", "verify"]
)
def test_answers_of_a_registry_are_text(verb: str, registry: str, tmp_path: Path) -> None:
    place = Place(tmp_path, registry)
    for case in CASES[verb]:
        check_run(place.run(verb, case, "actions"), f"{verb} {case}", "actions")


def test_settings_of_a_fork_are_text(place: Place, tmp_path: Path) -> None:
    for path in hostile_text.bad_settings(tmp_path):
        place.places["B"] = str(path)
        for verb in ("plan", "lock", "doctor"):
            done = place.run(verb, f"--config {path}", "actions")
            check_run(done, f"{verb} {path.name}", "actions")
            assert done.returncode in (2, 3)


def test_the_page_of_a_hostile_store_is_text(place: Place) -> None:
    page = Path(place.places["P"]) / "page.html"
    assert place.run("report", "-o P/page.html --store S", "actions").returncode == 0
    text = page.read_text(encoding="utf-8")
    assert text.replace("\n", "").isprintable()
    assert text.count("<script") == 1
    assert FAKE in text


@pytest.mark.parametrize(
    "words",
    [
        "list --any-state --store S",
        "show demo:v1 --store S",
        "store lease list --store S",
        "squashfs cat Q X",
    ],
)
def test_a_terminal_gets_text(words: str, place: Place) -> None:
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-m", "pipeline", *(place._word(word) for word in words.split())]
    with subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=place.environment) as process:
        os.close(theirs)
        printed = b""
        while piece := _read(ours):
            printed += piece
    os.close(ours)
    assert process.returncode in (0, 2, 6, 8), printed  # 8: a damaged event is reported, too
    if words.startswith(("list", "store lease")):  # cat prints a file's lines, show breaks long ones
        unbroken = re.sub(rb"\r\n {4,}", b" ", printed)
        check(unbroken.replace(b"\r\n", b"\n"), words)
    assert b"\x1b" not in printed
    assert printed.replace(b"\r\n", b"").decode().replace("\t", "").isprintable()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other end is closed
        return b""
