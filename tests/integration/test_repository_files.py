"""The files that hosts of repositories and editors read: valid by their schemas, pinned, and tried."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest
import yaml

from pipeline.cluster import bootstrap, settings
from pipeline.config.lock import Lock, LockedBase, write_lock
from pipeline.config.schema import json_schema
from pipeline.oci.digest import Digest
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "docs" / "schema" / "images.schema.json"
CLUSTER_SCHEMA = SCHEMA.with_name("cluster.schema.json")
TOOLS = Path(sys.executable).parent


def _check(*words: str | Path) -> None:
    argv = [TOOLS / "check-jsonschema", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("vendor.github-actions", ["action.yml"]),
        ("vendor.dependabot", [".github/dependabot.yml"]),
        ("vendor.github-issue-forms", [".github/ISSUE_TEMPLATE/bug.yml", ".github/ISSUE_TEMPLATE/idea.yml"]),
        ("vendor.github-issue-config", [".github/ISSUE_TEMPLATE/config.yml"]),
    ],
)
def test_each_follows_its_schema(schema: str, files: list[str]) -> None:
    _check("--builtin-schema", schema, *(ROOT / file for file in files))


def test_the_template_for_gitlab_follows_its_schema() -> None:
    argv = ("--builtin-schema", "vendor.gitlab-ci", "--data-transform", "gitlab-ci")
    _check(*argv, ROOT / "docs/how-to/gitlab-ci.yml")


def test_a_merge_request_is_planned_where_no_store_is_mounted(tmp_path: Path) -> None:
    """The template's own lines, in a repository that init made and `lock` has brought up to date."""
    template = yaml.safe_load((ROOT / "docs/how-to/gitlab-ci.yml").read_text())
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SQSHPIPE_")}
    environment |= {"PYTHONPATH": str(ROOT), "SQSHPIPE_STORE": str(tmp_path / "nothing mounted")}
    run = [sys.executable, "-m", "pipeline", "init", "demo"]
    subprocess.run(run, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=60)
    (tmp_path / ".venv").symlink_to(TOOLS.parent)
    [script] = template["plan"]["script"]
    base = LockedBase(
        digest=Digest.parse(f"sha256:{'0' * 64}"), locked_at=datetime(2026, 1, 2, tzinfo=timezone.utc)
    )
    name = Reference.parse("nvcr.io/nvidia/pytorch:24.01-py3")
    codes = []
    for lock in (Lock(), Lock().updated(name, Platform.parse("linux/amd64"), base)):
        write_lock(tmp_path / "images.lock", lock)
        done = subprocess.run(
            ["sh", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        codes.append(done.returncode)
    assert codes == [10, 0], done.stderr


def test_zizmor_finds_nothing_in_the_action_and_in_dependabot() -> None:
    argv = [
        TOOLS / "zizmor",
        "--offline",
        "--no-progress",
        ROOT / "action.yml",
        ROOT / ".github/dependabot.yml",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_schema_of_images_yaml_is_the_generated_one_and_takes_ours() -> None:
    """`make docs` writes it."""
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == json_schema()
    _check("--schemafile", SCHEMA, ROOT / "images.yaml")


@pytest.mark.parametrize("kind", ["parallelcluster", "pcs", "hyperpod"])
def test_the_schema_of_cluster_yaml_is_the_generated_one_and_takes_the_starters(
    kind: bootstrap.Kind, tmp_path: Path
) -> None:
    assert json.loads(CLUSTER_SCHEMA.read_text(encoding="utf-8")) == settings.json_schema()
    file = tmp_path / "cluster.yaml"
    file.write_text(bootstrap.starter(kind))
    _check("--schemafile", CLUSTER_SCHEMA, file)
    file.write_text(file.read_text().replace("store:", "stoer:"))
    with pytest.raises(AssertionError, match="stoer"):
        _check("--schemafile", CLUSTER_SCHEMA, file)


def test_the_schemas_are_schemas_that_schemastore_takes() -> None:
    """It takes drafts up to 7, and checks the name that a file gives itself."""
    _check("--check-metaschema", SCHEMA, CLUSTER_SCHEMA)
    for file in (SCHEMA, CLUSTER_SCHEMA):
        schema = json.loads(file.read_text())
        name = file.name.partition(".")[0]
        assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
        assert schema["$id"] == f"https://www.schemastore.org/sqshpipe-{name}.json"
        assert schema["title"] == f"sqshpipe {name}.yaml"
        assert schema["description"]
        assert schema["additionalProperties"] is False
        newer = re.findall(
            r"\$defs|prefixItems|unevaluated\w+|dependentRequired|\$dynamic\w+", file.read_text()
        )
        assert newer == [], "keys from newer drafts, which an older one ignores"
        named = set(re.findall(r'"#/definitions/(\w+)"', file.read_text()))
        assert named == set(schema["definitions"]), "each is there, and each is used"


def test_what_init_writes_fits_the_schema_that_its_first_line_names(tmp_path: Path) -> None:
    for words in (["init", "demo"], ["cluster", "init", "-o", "cluster.yaml"]):
        run = [sys.executable, "-m", "pipeline", *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(run, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=60)
    for name, schema in (("images", SCHEMA), ("cluster", CLUSTER_SCHEMA)):
        file = tmp_path / f"{name}.yaml"
        first = file.read_text().splitlines()[0]
        assert first.startswith(f"# yaml-language-server: $schema={name}.schema.json ")
        _check("--schemafile", schema, file)


def test_the_schema_finds_a_misspelt_key(tmp_path: Path) -> None:
    wrong = tmp_path / "images.yaml"
    wrong.write_text((ROOT / "images.yaml").read_text().replace("defaults:", "default:"))
    with pytest.raises(AssertionError, match="default"):
        _check("--schemafile", SCHEMA, wrong)


def test_editors_find_the_schema() -> None:
    first = (ROOT / "images.yaml").read_text().splitlines()[0]
    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert named is not None
    assert (ROOT / named[1]) == SCHEMA
    starter = (ROOT / "pipeline/cli/starters/images.yaml.j2").read_text().splitlines()[0]
    assert starter.startswith("# yaml-language-server: $schema=images.schema.json ")


def test_the_package_names_files_of_the_repository_that_the_documents_name() -> None:
    text = (ROOT / "pyproject.toml").read_text().partition("[project.urls]")[2].partition("\n\n")[0]
    links = re.findall(r'"(https://github\.com/[^"]+)"', text)
    [repository] = [link for link in links if link.endswith("/sqshpipe")]
    assert repository in (ROOT / "docs/how-to/own-image.md").read_text()
    for link in links:
        assert link.startswith(repository)
        _, _, path = link.partition("/blob/main/")
        assert (ROOT / path).exists()


def test_pre_commit_runs_programs_that_are_there() -> None:
    [local] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local", "nothing is fetched"
    for hook in local["hooks"]:
        program = hook["entry"].split()[0]
        assert not program.startswith(".venv/bin/") or (TOOLS / Path(program).name).exists(), program
        assert "files" in hook or "types" in hook or "types_or" in hook


def test_the_hook_for_other_repositories_runs_on_the_files_that_it_reads() -> None:
    [hook] = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    program, *words = hook["entry"].split()
    assert (TOOLS / program).exists()
    assert words == ["plan", "--offline"]
    chosen = re.compile(hook["files"])
    for name in (
        "images.yaml",
        "images.lock",
        "dockerfiles/demo/Dockerfile",
        "a/Dockerfile.gpu",
        "a/.dockerignore",
    ):
        assert chosen.search(name), name
    for name in ("README.md", "my-images.yaml", "docs/images.yaml.md"):
        assert not chosen.search(name), name


@pytest.mark.needs("bash", "od")
@pytest.mark.parametrize("code", [0, 10])
def test_the_action_runs_the_command_and_gives_what_it_printed(tmp_path: Path, code: int) -> None:
    """Arguments come through the environment, one on each line: nothing in them is run by a shell."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    [step] = [step for step in action["runs"]["steps"] if step.get("id") == "run"]
    assert "${{" not in step["run"]
    program = tmp_path / "sqshpipe" / "bin" / "sqshpipe"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nfor word; do echo "<$word>"; done\nexit {code}\n')
    program.chmod(0o755)
    output = tmp_path / "output"
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        env={
            "PATH": os.environ["PATH"],
            "RUNNER_TEMP": str(tmp_path),
            "GITHUB_OUTPUT": str(output),
            "COMMAND": "store scrub",
            "ARGUMENTS": "--store\n/fsx/my images\n\n$(touch planted) `id` ; *\n",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    words = ["store", "scrub", "--store", "/fsx/my images", "$(touch planted) `id` ; *"]
    assert done.stdout.splitlines() == [f"<{word}>" for word in words]
    head, *lines, end = output.read_text().splitlines()
    assert head == f"result<<{end}"
    assert lines == done.stdout.splitlines()
    assert not (tmp_path / "planted").exists()


@pytest.mark.needs("bash", "git")
def test_the_action_puts_the_program_and_nothing_else_on_the_path(tmp_path: Path) -> None:
    """What bootstrap.sh installs is there before: its stamp says so."""
    steps = yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"]
    [step] = [step for step in steps if "bootstrap.sh" in step.get("run", "")]
    venv = tmp_path / "sqshpipe"
    (venv / "bin").mkdir(parents=True)
    for name in ("python", "pip", "sqshpipe"):
        (venv / "bin" / name).write_text("#!/bin/sh\necho $0 $1\n")
        (venv / "bin" / name).chmod(0o755)
    (venv / ".installed").touch()
    path = tmp_path / "path"
    for _ in range(2):  # also in a job that calls the action twice
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            env={
                "PATH": os.environ["PATH"],
                "GITHUB_ACTION_PATH": str(ROOT),
                "RUNNER_TEMP": str(tmp_path),
                "GITHUB_PATH": str(path),
            },
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
    [folder] = set(path.read_text().splitlines())
    assert [each.name for each in Path(folder).iterdir()] == ["sqshpipe"]
    said = subprocess.run(
        [Path(folder) / "sqshpipe", "hello"], capture_output=True, text=True, check=True
    ).stdout
    assert said.split()[1] == "hello"


def test_the_action_installs_from_the_lock_alone() -> None:
    text = (ROOT / "action.yml").read_text()
    assert "bootstrap.sh" in text
    assert "pip install" not in text
    for action in re.findall(r"uses: (\S+/\S+)", text.partition("\nname:")[2]):
        assert re.search(r"@[0-9a-f]{40}$", action), action
