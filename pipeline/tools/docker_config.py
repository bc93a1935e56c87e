"""A Docker client configuration that holds exactly the credentials of one build, for as long as the build
runs."""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipeline.tools.credentials import Credentials, docker_config_path

_DOCKER_HUB = "docker.io"
_DOCKER_HUB_KEY = "https://index.docker.io/v1/"
_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of mode 0700 is made in it


@contextmanager
def docker_config(credentials: Mapping[str, Credentials | None]) -> Iterator[Path]:
    """Give a folder to set DOCKER_CONFIG to, with a config.json that knows these registry hosts and no other.

    The builder cannot be handed a password in another way than by file. This one is for the owner alone, in
    memory where the machine has a tmpfs, and gone when the build ends. The user's own config.json is left
    out of it, so that a credential helper that is not installed breaks no build; its proxies and plugins
    are kept.
    """
    memory = _MEMORY if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="sqshpipe-docker-", dir=memory) as name:
        folder = Path(name)
        config = {**_kept(), "auths": {_key(host): _entry(found) for host, found in credentials.items()}}
        path = folder / "config.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps(config), encoding="utf-8")
        plugins = docker_config_path().with_name("cli-plugins")
        if plugins.is_dir():
            (folder / "cli-plugins").symlink_to(plugins.absolute())
        yield folder


def _kept() -> dict[str, object]:
    try:
        config = json.loads(docker_config_path().read_bytes())
    except (OSError, ValueError):
        return {}
    kept = ("proxies", "cliPluginsExtraDirs")
    return {name: config[name] for name in kept if name in config} if isinstance(config, dict) else {}


def _key(host: str) -> str:
    return _DOCKER_HUB_KEY if host == _DOCKER_HUB else host


def _entry(found: Credentials | None) -> dict[str, str]:
    if found is None:
        return {}
    if found.identity_token:
        return {"identitytoken": found.identity_token}
    pair = f"{found.username}:{found.password}".encode()
    return {"auth": base64.b64encode(pair).decode("ascii")}
