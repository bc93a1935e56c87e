"""``sqshpipe refresh`` against registries whose tags move, appear, disappear, fail and rate-limit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from demo.registry import PrivateRegistry
from pipeline.config.lock import read_lock
from pipeline.config.reading import load
from pipeline.oci.digest import Digest
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import credentials_provider
from tests.support.command_line import app
from tests.support.images.tiny_images import push_image
from tests.support.servers.github import FakeGitHub
from tests.support.servers.registry import Fault, FaultyProxy, serving

NOBODY = "127.0.0.1:1"


@pytest.fixture
def proxy(
    registry: PrivateRegistry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[FaultyProxy]:
    with FaultyProxy(registry.address) as made:
        for name, value in registry.variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("SQSHPIPE_REGISTRY", made.address)
        monkeypatch.setenv("SQSHPIPE_CACHE", str(tmp_path / "cache"))
        yield made


@pytest.fixture
def client(proxy: FaultyProxy) -> Iterator[RegistryClient]:
    with RegistryClient(proxy.address, credentials=credentials_provider(proxy.address)) as made:
        yield made


@pytest.fixture
def repository(tmp_path: Path) -> str:
    """A name that no other test uses: all tests share one registry."""
    return f"refresh/{re.sub('[^a-z0-9]+', '-', tmp_path.name.lower()).strip('-')}"


def write(folder: Path, images: dict[str, str]) -> Path:
    lines = "".join(f"  {name}:\n    {settings}\n" for name, settings in images.items())
    path = folder / "images.yaml"
    path.write_text(f"# kept as it is\nversion: 1\nimages:\n{lines}")
    return path


def refresh(path: Path, *more: str) -> Result:
    return CliRunner().invoke(app, ["refresh", "--config", str(path), *more], catch_exceptions=False)


def changes(result: Result) -> list[tuple[str, str]]:
    return [(change["kind"], change["new"]) for change in json.loads(result.stdout)["changes"]]


def locked(path: Path, image: str) -> Digest | None:
    spec = load(path).image(image)
    held = read_lock(path.with_suffix(".lock")).get(spec.base, spec.platform)
    return held.digest if held else None


def test_a_moved_tag_is_followed_once(client: RegistryClient, repository: str, tmp_path: Path) -> None:
    first = push_image(client, repository, "1", content="one")
    path = write(tmp_path, {"a": f"base: {client.host}/{repository}:1"})
    assert changes(refresh(path, "--json")) == [("locked", str(first))]
    assert changes(refresh(path, "--json")) == []
    second = push_image(client, repository, "1", content="two")
    assert refresh(path, "--dry-run").exit_code == 10
    assert locked(path, "a") == first
    result = refresh(path, "--json")
    assert changes(result) == [("moved", str(second))]
    assert (result.exit_code, locked(path, "a")) == (0, second)
    again = refresh(path)
    assert (again.exit_code, again.stdout) == (0, "")
    assert "nothing changed" in again.stderr


def test_a_newer_tag_is_taken_or_reported(client: RegistryClient, repository: str, tmp_path: Path) -> None:
    base = f"{client.host}/{repository}"
    push_image(client, repository, "24.01-py3", content="old")
    track = "track: {pattern: YY.MM-py3, policy: %s}"
    path = write(
        tmp_path,
        {
            "takes": f"base: {base}:24.01-py3  # a comment\n    {track % 'newest'}",
            "asks": f"base: {base}:24.01-py3\n    {track % 'notify'}",
        },
    )
    refresh(path)
    newer = push_image(client, repository, "24.02-py3", content="new")
    reported = tmp_path / "reported"
    command = (
        f"notify: [{{command: [/bin/sh, -c, 'cat >> {reported}; echo >> {reported}'], on: [base-moved]}}]\n"
    )
    with path.open("a") as file:
        file.write(command)
    push_image(client, repository, "24.03-py3-beta", content="beta")
    result = refresh(path, "--json")
    assert changes(result) == [("newer", "24.02-py3"), ("announced", "24.02-py3")]
    assert str(load(path).image("takes").base).endswith(":24.02-py3")
    assert str(load(path).image("asks").base).endswith(":24.01-py3")
    assert path.read_text().startswith("# kept as it is")
    assert ":24.02-py3  # a comment\n" in path.read_text()
    assert locked(path, "takes") == newer
    assert changes(refresh(path, "--json")) == [("announced", "24.02-py3")]
    # Both are reported, each once: what is taken, and what people decide; also where that is all.
    assert reported.read_text().count("has a newer tag") == 1
    assert reported.read_text().count("gives way to the newer tag") == 1
    reported.unlink()
    push_image(client, repository, "24.04-py3", content="newest")
    path.write_text(path.read_text().replace("policy: newest", "policy: notify"))
    assert changes(refresh(path, "--json")) == [("announced", "24.04-py3")] * 2
    assert "24.04-py3" in reported.read_text()


def test_what_fails_costs_only_its_own_bases(client: RegistryClient, repository: str, tmp_path: Path) -> None:
    push_image(client, repository, "stays", content="1")
    gone = push_image(client, repository, "gone", content="2")
    base = f"{client.host}/{repository}"
    images = {name: f"base: {base}:{name}" for name in ("stays", "gone")}
    path = write(tmp_path, images)
    refresh(path)
    moved = push_image(client, repository, "stays", content="3")
    client.session.ask(
        "DELETE", f"/v2/{repository}/manifests/{gone}", scopes=(), what="test", expected=(202,)
    )
    write(tmp_path, {**images, "dead": f"base: {NOBODY}/team/base:1\n    track: {{pattern: N}}"})
    assert refresh(path, "--dry-run").exit_code == 10, "what could be found out decides"
    result = refresh(path, "--json")
    assert result.exit_code == 0, "a base that cannot be asked is a warning"
    assert changes(result) == [("moved", str(moved))]
    found = json.loads(result.stdout)["problems"]
    problems = {problem["images"][0]: problem["why"] for problem in found}
    assert set(problems) == {"gone", "dead"}
    assert len(found) == 2  # once each, though both digest and tags of the dead one were asked for
    assert "does not exist" in problems["gone"]
    assert NOBODY in problems["dead"]
    assert (locked(path, "stays"), locked(path, "gone"), locked(path, "dead")) == (moved, gone, None)


def test_rate_limits_are_waited_for_and_failures_tried_again(
    client: RegistryClient, proxy: FaultyProxy, repository: str, tmp_path: Path
) -> None:
    digest = push_image(client, repository, "1", content="one")
    path = write(tmp_path, {"a": f"base: {client.host}/{repository}:1"})
    manifests = f"{repository}/manifests/1"
    proxy.faults += [
        Fault(method="HEAD", path=manifests, status=429, headers={"Retry-After": "1"}),
        Fault(method="HEAD", path=manifests, status=503),
    ]
    before = proxy.count("HEAD", manifests)
    started = time.monotonic()
    assert changes(refresh(path, "--json")) == [("locked", str(digest))]
    assert time.monotonic() - started > 1
    assert proxy.count("HEAD", manifests) - before >= 3


def test_tags_are_not_sent_again_while_their_etag_stands(
    client: RegistryClient, proxy: FaultyProxy, repository: str, tmp_path: Path
) -> None:
    push_image(client, repository, "1.0", content="one")
    path = write(tmp_path, {"a": f"base: {client.host}/{repository}:1.0\n    track: {{pattern: N.N}}"})
    listing = f"{repository}/tags/list"
    # Twice: the first answer asks for a password.
    proxy.faults.append(Fault(path=listing, headers={"ETag": '"t1"'}, times=2))
    refresh(path)
    push_image(client, repository, "1.1", content="two")
    proxy.faults.append(Fault(path=listing, status=304))
    assert changes(refresh(path, "--json")) == []
    asked = [seen for seen in proxy.seen if re.search(listing, seen.path)][-1]
    assert {name.lower(): value for name, value in asked.headers.items()}["if-none-match"] == '"t1"'
    assert changes(refresh(path, "--json")) == [("announced", "1.1")]


def test_fifty_images_with_nothing_new_are_done_with_a_line(
    client: RegistryClient, repository: str, tmp_path: Path
) -> None:
    for number in range(10):
        push_image(client, repository, f"t{number}", content=f"{number}")
    images = {f"i{number}": f"base: {client.host}/{repository}:t{number % 10}" for number in range(50)}
    path = write(tmp_path, images)
    refresh(path)
    ended = subprocess.run(
        [sys.executable, "-m", "pipeline", "refresh", "--config", path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "nothing changed" in ended.stderr


def test_a_branch_and_a_pull_request_with_the_reasons(
    client: RegistryClient, repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, origin = tmp_path / "work", tmp_path / "origin.git"
    work.mkdir()

    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.com")
        argv = ["git", "-C", str(work), *who, *words]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()

    push_image(client, repository, "1", content="one")
    path = write(work, {"a": f"base: {client.host}/{repository}:1"})
    refresh(path)
    git("init", "-q", "-b", "main")
    subprocess.run(["git", "init", "-q", "--bare", str(origin)], check=True)
    git("remote", "add", "origin", str(origin))
    git("add", "-A")
    git("commit", "-q", "-m", "first")
    git("push", "-q", "origin", "main")
    moved = push_image(client, repository, "1", content="two")
    github = FakeGitHub()
    with serving(github.handler) as address:
        monkeypatch.setenv("GITHUB_API_URL", f"http://{address}")
        monkeypatch.setenv("GITHUB_REPOSITORY", "team/images")
        monkeypatch.setenv("GH_TOKEN", "app-token")
        result = refresh(path, "--branch", "sqshpipe/refresh")
        assert (result.exit_code, result.stdout) == (0, "https://example.com/pull/7\n")
        tip = git("ls-remote", "origin", "refs/heads/sqshpipe/refresh").split()[0]
        assert refresh(path, "--branch", "sqshpipe/refresh").exit_code == 0
        assert git("ls-remote", "origin", "refs/heads/sqshpipe/refresh").split()[0] == tip
    assert git("status", "--porcelain") == ""
    assert git("show", "--name-only", "--format=", tip) == "images.lock"
    assert str(moved) in git("show", f"{tip}:images.lock")
    verb, where, sent = github.asked[1]
    assert (verb, where, sent["head"], sent["base"]) == (
        "POST",
        "/repos/team/images/pulls",
        "sqshpipe/refresh",
        "main",
    )
    assert "moved from" in sent["title"]
    assert str(moved) in sent["body"]
    assert [verb for verb, _, _ in github.asked] == ["GET", "POST", "GET", "PATCH"]
    # The token reaches git through its environment alone.
    assert "app-token" not in (work / ".git" / "config").read_text()
    assert os.environ["GH_TOKEN"] not in result.stderr
