"""Where passwords come from, in which order, and that they are never shown."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, ToolError
from pipeline.registry import credentials
from pipeline.registry.credentials import Credentials, credentials_for, credentials_provider

HELPER = """#!/bin/sh
read -r server
case "$server" in
    known.example.com) printf '{"ServerURL":"x","Username":"helped","Secret":"helper-secret"}' ;;
    token.example.com) printf '{"ServerURL":"x","Username":"<token>","Secret":"identity"}' ;;
    strange.example.com) printf 'no json, but secret-text' ;;
    broken.example.com) echo 'secret-text' ; exit 2 ;;
    *) echo 'credentials not found in native keychain'; exit 1 ;;
esac
"""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DOCKER_CONFIG folder, a credential helper called ``fake``, and an environment without credentials."""
    for name in ("SQSHPIPE_REGISTRY", "SQSHPIPE_REGISTRY_USER", "SQSHPIPE_REGISTRY_PASSWORD", "NGC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "docker-credential-fake").write_text(HELPER)
    (programs / "docker-credential-fake").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return tmp_path


def write(folder: Path, **config: object) -> None:
    (folder / "config.json").write_text(json.dumps(config))


def auth(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_nothing_known_is_anonymous(docker: Path) -> None:
    assert credentials_for("registry.example.com") is None


def test_docker_login_is_enough(docker: Path) -> None:
    write(
        docker,
        auths={
            "https://old.example.com/v1/": auth("old", "p:w"),
            "plain.example.com:5000": {"username": "u", "password": "p"},
            "https://index.docker.io/v1/": auth("hub", "pw"),
            "token.example.com": {"auth": "", "identitytoken": "tok"},
        },
    )
    old = credentials_for("old.example.com")
    assert old is not None
    assert (old.username, old.password) == ("old", "p:w")
    plain = credentials_for("plain.example.com:5000")
    assert plain is not None
    assert plain.basic() == "Basic " + base64.b64encode(b"u:p").decode()
    hub = credentials_for("docker.io")
    assert hub is not None
    assert hub.username == "hub"
    token = credentials_for("token.example.com")
    assert token is not None
    assert token.identity_token == "tok"
    assert credentials_for("plain.example.com") is None, "another port is another registry"


def test_helpers_come_before_the_file(docker: Path) -> None:
    write(
        docker,
        auths={"known.example.com": auth("file", "pw"), "other.example.com": auth("file", "pw")},
        credHelpers={"known.example.com": "fake", "token.example.com": "fake"},
    )
    known = credentials_for("known.example.com")
    assert known is not None
    assert (known.username, known.password) == ("helped", "helper-secret")
    token = credentials_for("token.example.com")
    assert token is not None
    assert (token.username, token.identity_token) == ("", "identity")
    other = credentials_for("other.example.com")
    assert other is not None
    assert other.username == "file"
    write(docker, credsStore="fake", auths={"unknown.example.com": auth("file", "pw")})
    unknown = credentials_for("unknown.example.com")
    assert unknown is not None
    assert unknown.username == "file"


@pytest.mark.parametrize("host", ["strange.example.com", "broken.example.com"])
def test_a_broken_helper_is_reported_without_what_it_said(docker: Path, host: str) -> None:
    write(docker, credsStore="fake")
    with pytest.raises(ToolError, match="docker-credential-fake") as caught:
        credentials_for(host)
    assert "secret-text" not in str(caught.value)


def test_a_missing_helper_is_reported(docker: Path) -> None:
    write(docker, credHelpers={"x.example.com": "not-there"})
    with pytest.raises(ToolError, match="docker-credential-not-there") as caught:
        credentials_for("x.example.com")
    assert "config.json" in caught.value.hint
    assert credentials_for("y.example.com") is None


@pytest.mark.parametrize("text", ["{not json, password: hunter2", "[]", '"x"'])
def test_a_damaged_file_is_reported_without_quoting_it(docker: Path, text: str) -> None:
    (docker / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json") as caught:
        credentials_for("x.example.com")
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    write(docker, auths={"x.example.com": {"auth": "%%%"}})
    with pytest.raises(ConfigError, match="not base64"):
        credentials_for("x.example.com")


@pytest.mark.parametrize("text", ["", "\n", "{}"])
def test_an_empty_file_says_nothing(docker: Path, text: str) -> None:
    """So docker takes it; a provisioning tool leaves one now and then."""
    (docker / "config.json").write_text(text)
    assert credentials_for("x.example.com") is None


def test_the_environment_serves_the_configured_registry_alone(
    docker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQSHPIPE_REGISTRY_USER", "env")
    monkeypatch.setenv("SQSHPIPE_REGISTRY_PASSWORD", "env-secret")
    assert credentials_for("registry.example.com") is None
    provider = credentials_provider("registry.example.com")
    mine = provider("registry.example.com")
    assert mine is not None
    assert mine.username == "env"
    assert provider("nvcr.io") is None
    monkeypatch.setenv("SQSHPIPE_REGISTRY", "registry.example.com/team")
    assert credentials_for("registry.example.com") is not None
    monkeypatch.delenv("SQSHPIPE_REGISTRY_PASSWORD")
    with pytest.raises(ConfigError, match="SQSHPIPE_REGISTRY_PASSWORD is not set"):
        credentials_for("registry.example.com")


def test_ngcs_key_goes_to_nvcr_alone(docker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NGC_API_KEY", "nvapi-secret")
    found = credentials_for("nvcr.io")
    assert found is not None
    assert (found.username, found.password) == ("$oauthtoken", "nvapi-secret")
    for other in ("notnvcr.io", "nvcr.io.example.com", "registry.example.com"):
        assert credentials_for(other) is None


def test_secrets_are_never_shown() -> None:
    secret = Credentials(username="u", password="hunter2", identity_token="hunter3", expires_at=None)
    assert "hunter" not in f"{secret} {secret!r}"


def test_credentials_end() -> None:
    assert not Credentials(username="u", password="p").stale()
    assert Credentials(username="u", password="p", expires_at=time.time() + 60).stale()
    assert not Credentials(username="u", password="p", expires_at=time.time() + 3600).stale()
    assert credentials.NGC_USER == "$oauthtoken"
