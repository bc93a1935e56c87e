"""What must not be loaded: by small verbs, which run inside job scripts, and where there is nothing to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from pipeline.cli import app
from pipeline.cli.tree import command_line

HEAVY = {"structlog", "pydantic", "httpx", "docker", "boto3", "botocore", "rich", "asyncio", "jinja2", "yaml"}
LATER = {"bars", "logs", "progress"}  # imported by verbs while they run
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


def loaded_by_typer() -> set[str]:
    """What another version of typer may load itself is not ours to forbid."""
    program = "import sys, typer; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("words", [["resolve", "demo"], ["list"], ["show", "demo"]], ids=" ".join)
def test_small_verbs_load_little(words: list[str], tmp_path: Path) -> None:
    _, loaded = started([*words, "--store", str(tmp_path)], tmp_path)
    assert not loaded & HEAVY - loaded_by_typer()


MODULES = sorted(path.stem for path in Path(app.__file__).parent.glob("*.py") if path.stem not in LATER)


@pytest.mark.parametrize("module", MODULES)
def test_no_module_of_verbs_imports_heavy_things(module: str) -> None:
    program = f"import sys, pipeline.cli.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & HEAVY - loaded_by_typer()


def test_an_image_that_is_published_loads_neither_engine_nor_converter(released: Path) -> None:
    words = ["release", "demo", "--tag", "v1", "--config", str(released / "images.yaml")]
    done, loaded = started(words, released)
    assert (done.returncode, "demo:v1 is published and nothing changed" in done.stderr) == (0, True)
    assert done.stdout == f"{released / 'store' / 'demo' / 'v1.sqsh'}\n"
    assert loaded & HEAVY <= IDLE | {"rich"}  # structlog brings rich
    assert not {name for name in loaded if name.startswith(("pipeline.convert.", "pipeline.scan."))}
    assert "pipeline.image.build" not in loaded
    assert not {name for name in loaded if name.startswith("pipeline.squashfs")}


def test_a_hook_of_a_job_loads_what_it_needs(tmp_path: Path) -> None:
    """No rank starts before a Prolog has ended."""
    words = ["node", "mount-for-job", "0" * 64, "--job", "1", "--user", "0:0"]
    done, loaded = started([*words, "--settings", str(tmp_path / "no.json")], tmp_path)
    assert "no.json" in done.stderr
    assert "pipeline.node.job_mount" in loaded
    assert not loaded & HEAVY - loaded_by_typer()


def test_a_rank_of_run_loads_what_it_needs(tmp_path: Path) -> None:
    """Eight of them start at once on a node, before any rank of a job is there."""
    (tmp_path / "text.sqsh").write_text("no squashfs")
    done, loaded = started(["run", str(tmp_path / "text.sqsh")], tmp_path)
    assert "not a squashfs" in done.stderr
    assert "pipeline.node.run" in loaded
    assert not loaded & HEAVY - loaded_by_typer()
    assert not {name for name in loaded if name.startswith(("pipeline.convert.", "pipeline.squashfs.pack"))}


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (["run", "--hlp"], {"run"}),
        (["-q", "node", "check", "--hlp"], {"node"}),
        (["--log-format", "json", "node", "chck"], None),  # a value of an option stands first
        (["list", "--stor", "x"], {"list"}),
        (["nod"], None),
        (["--hlp"], None),
    ],
)
def test_the_verb_that_is_called_is_built_alone_and_says_the_same(
    words: list[str], needed: set[str] | None
) -> None:
    trees = [typer.main.get_command(tree) for tree in (command_line(words), command_line())]
    alone, whole = (set(getattr(tree, "commands", ())) for tree in trees)
    assert alone == (needed or whole)
    said = []
    for tree in trees:
        with pytest.raises(typer.TyperException) as error:
            tree.main(args=words, prog_name="sqshpipe", standalone_mode=False)
        said.append((error.value.format_message(), error.value.ctx.command_path))  # type: ignore[attr-defined]
    assert said[0] == said[1]
