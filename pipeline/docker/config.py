"""A Docker client configuration with the credentials of one build, which lives as long as the build."""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipeline.authn import Credentials
from pipeline.registry.docker_login import docker_config_path
from pipeline.system.disk import write_text
from pipeline.system.scratch import held_folder

_DOCKER_HUB = "docker.io"
_DOCKER_HUB_KEY = "https://index.docker.io/v1/"
_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of mode 0700 is made in it
_ROOM = 1 << 16  # bytes


@contextmanager
def docker_config(credentials: Mapping[str, Credentials | None]) -> Iterator[Path]:
    """Give a folder to set DOCKER_CONFIG to, with a config.json that knows these registry hosts and no other.

    The builder cannot be handed a password in another way than by file. This one is for the owner alone, in
    memory where the machine has a tmpfs with room, and gone when the build ends; what a build that was killed
    left there goes with the next. The user's own config.json is left out of it, so that a credential helper
    that is not installed breaks no build; its proxies and plugins are kept.
    """
    parent = _MEMORY if _has_room(_MEMORY) else Path(tempfile.gettempdir())
    with held_folder(parent, hint="let TMPDIR name a folder that you can write") as folder:
        config = {**_kept(), "auths": {_key(host): _entry(found) for host, found in credentials.items()}}
        path = folder / "config.json"
        path.touch(mode=0o600)
        write_text(path, json.dumps(config))
        plugins = docker_config_path().with_name("cli-plugins")
        if plugins.is_dir():
            (folder / "cli-plugins").symlink_to(plugins.absolute())
        yield folder


def _has_room(folder: Path) -> bool:
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        return False
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize >= _ROOM and (not status.f_files or status.f_favail > 8)


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
