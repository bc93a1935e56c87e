"""Which login is shown for an image: skopeo, which defines the file's format, and ours show the same."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import RegistryError
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import KnownCredentials
from tests.support.registry import Quiet, serving

pytestmark = pytest.mark.needs("skopeo")


def auth(user: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:pw".encode()).decode()}


@pytest.fixture
def shown() -> Iterator[tuple[str, list[str]]]:
    """A registry that refuses everybody: its address, and the users that it was shown."""
    users: list[str] = []

    class Refusing(Quiet):
        def do_GET(self) -> None:  # noqa: N802 - the name that http.server asks for
            given = self.headers.get("Authorization", "")
            if given:
                users.append(base64.b64decode(given.removeprefix("Basic ")).decode().partition(":")[0])
            self.answer(401, WWW_Authenticate='Basic realm="x"')

        do_HEAD = do_GET  # noqa: N815 - the name that http.server asks for

    with serving(Refusing) as address:
        yield address, users


KEYS = [
    ["HOST/zzz", "HOST"],
    ["HOST", "HOST/zzz"],
    ["HOST/a", "HOST/a/b", "HOST"],
    ["HOST/a/b/c", "HOST/a/b"],
    ["HOST/a/bb", "HOST"],
    ["HOST/a/b/c/d", "HOST"],
    ["https://HOST/v1/", "HOST/zzz"],
    ["HOST/zzz"],
]


@pytest.mark.parametrize("keys", KEYS, ids=" ".join)
@pytest.mark.parametrize("repository", ["a/b/c", "zzz", "b"])
def test_the_same_login_is_shown(
    shown: tuple[str, list[str]],
    keys: list[str],
    repository: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address, users = shown
    for name in ("SQSHPIPE_REGISTRY", "SQSHPIPE_REGISTRY_USER", "SQSHPIPE_REGISTRY_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"auths": {key.replace("HOST", address): auth(key) for key in keys}}))
    skopeo = ["skopeo", "inspect", "--retry-times=0", "--tls-verify=false", f"--authfile={file}"]
    subprocess.run(
        [*skopeo, f"docker://{address}/{repository}:v1"], capture_output=True, timeout=60, check=False
    )
    theirs = set(users) - {""}  # skopeo shows an empty one where it knows none
    users.clear()
    with RegistryClient(address, credentials=KnownCredentials()) as client, pytest.raises(RegistryError):
        client.head(repository, "v1")
    assert set(users) == theirs
