"""Which entry of Docker's configuration counts for an image, as containers-auth.json(5) has it."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import httpx
import pytest

from pipeline.registry import docker_login
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import KnownCredentials
from tests.support.fake_registry import Streamed


def auth(user: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:pw".encode()).decode()}


RIGHT, WRONG = auth("right"), auth("wrong")
HOST = "r.example.com:5000"
CASES: dict[str, tuple[dict[str, dict[str, str]], str]] = {
    "another part before the host": ({f"{HOST}/zzz": WRONG, HOST: RIGHT}, f"{HOST}/b"),
    "the part before the host": ({HOST: WRONG, f"{HOST}/b": RIGHT}, f"{HOST}/b"),
    "the longest part": ({f"{HOST}/a": WRONG, f"{HOST}/a/b": RIGHT, HOST: WRONG}, f"{HOST}/a/b/c"),
    "whole parts alone": ({f"{HOST}/team": WRONG, f"{HOST}/tea": WRONG, HOST: RIGHT}, f"{HOST}/team2/x"),
    "a longer name than asked": ({f"{HOST}/b/c": WRONG, HOST: RIGHT}, f"{HOST}/b"),
    "another port": ({"r.example.com": WRONG, "r.example.com:5001/b": WRONG, HOST: RIGHT}, f"{HOST}/b"),
    "a slash at the end": ({f"{HOST}/b/": RIGHT, HOST: WRONG}, f"{HOST}/b"),
    "an old address": ({f"https://{HOST}/v1/": RIGHT}, f"{HOST}/b"),
    "exact before an old address": ({f"https://{HOST}/v1/": WRONG, HOST: RIGHT}, f"{HOST}/b"),
    "an empty entry of a part": ({f"{HOST}/b": {}, HOST: RIGHT}, f"{HOST}/b"),
    "docker's own key": ({"https://index.docker.io/v1/": RIGHT}, "docker.io/library/ubuntu"),
    "Docker Hub by another name": ({"registry-1.docker.io": RIGHT}, "docker.io/library/ubuntu"),
    "a part of Docker Hub": (
        {"docker.io": WRONG, "docker.io/team": RIGHT},
        "docker.io/team/x",
    ),
    "another part of Docker Hub": (
        {"index.docker.io/team": WRONG, "docker.io": RIGHT},
        "docker.io/library/x",
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("SQSHPIPE_REGISTRY", "SQSHPIPE_REGISTRY_USER", "SQSHPIPE_REGISTRY_PASSWORD", "NGC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("reverse", [False, True])
def test_the_longest_matching_key_wins(folder: Path, case: str, *, reverse: bool) -> None:
    auths, name = CASES[case]
    ordered = dict(reversed(auths.items())) if reverse else auths
    (folder / "config.json").write_text(json.dumps({"auths": ordered}))
    found = docker_login.find(name)
    assert found is not None
    assert found.username == "right"
    known = KnownCredentials()
    assert known(known.place(name)) == found


@pytest.mark.parametrize(
    ("auths", "name"),
    [
        ({f"{HOST}/b": WRONG}, f"{HOST}/c"),
        ({f"{HOST}/b": WRONG}, HOST),
        ({f"x.{HOST}": WRONG, "example.com": WRONG}, f"{HOST}/b"),
    ],
)
def test_no_other_key_matches(folder: Path, auths: dict[str, dict[str, str]], name: str) -> None:
    (folder / "config.json").write_text(json.dumps({"auths": auths}))
    assert docker_login.find(name) is None


@pytest.mark.parametrize("scheme", ["Basic", "Bearer"])
def test_one_client_shows_each_repository_its_own(folder: Path, scheme: str) -> None:
    auths = {HOST: auth("all"), f"{HOST}/a": auth("a"), f"{HOST}/b/c": auth("c")}
    (folder / "config.json").write_text(json.dumps({"auths": auths}))
    shown: dict[str, str] = {}

    def handler(request: httpx.Request) -> httpx.Response:
        given = request.headers.get("authorization", "")
        if request.url.path == "/token":
            user = base64.b64decode(given.removeprefix("Basic ")).decode().partition(":")[0]
            return httpx.Response(200, json={"token": user})
        if not given:
            challenge = f'{scheme} realm="https://{HOST}/token"'
            return httpx.Response(401, headers={"WWW-Authenticate": challenge})
        user = given.removeprefix("Bearer ")
        if scheme == "Basic":
            user = base64.b64decode(given.removeprefix("Basic ")).decode().partition(":")[0]
        shown[request.url.path.split("/v2/")[1].partition("/tags")[0]] = user
        return httpx.Response(200, json={"tags": []})

    with RegistryClient(HOST, credentials=KnownCredentials(), transport=Streamed(handler)) as client:
        for repository in ("x", "a", "a/b", "b", "b/c"):
            client.tags(repository)
    assert shown == {"x": "all", "a": "a", "a/b": "a", "b": "all", "b/c": "c"}
