"""A registry on loopback for the demo and the tests, which lives as long as they do.

It is Debian's docker-registry with a password where that is installed, else a container of the Docker Engine.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import docker
import httpx
from docker.errors import DockerException

from demo.engine import pull_if_missing
from pipeline.docker.engine import Engine
from pipeline.errors import ToolError
from pipeline.registry.credentials import Credentials
from pipeline.system import process

CONTAINER_IMAGE = "registry:2"
_PROGRAMS = ("docker-registry", "htpasswd", "setpriv")
_HINT = "install it first: sudo apt-get install docker-registry apache2-utils"
_READY_SECONDS = 20.0
_ATTEMPTS = 5


class PrivateRegistry:
    """A registry that lives from `start` to `stop`, or as long as a ``with``.

    Start it from a thread that lives as long: it ends when the thread that started it ends. ``username`` and
    ``password`` are made anew for each; the password is never in an argument list.
    ``auth`` replaces the
    htpasswd file by another ``auth:`` section of the registry's configuration (as lines), for tests.
    """

    def __init__(self, *, username: str = "sqshpipe", password: str = "", auth: str | None = None) -> None:
        self.username = username
        self.password = password or secrets.token_urlsafe(18)
        self.address = ""
        self._auth = auth
        self._process: subprocess.Popen[bytes] | None = None
        self._own_folder: Path | None = None

    def __repr__(self) -> str:
        return f"PrivateRegistry({self.address or 'stopped'!r})"

    def __enter__(self) -> PrivateRegistry:  # noqa: PYI034 - Self is not in Python 3.10
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, folder: Path | None = None) -> str:
        """Start it and wait until it answers; gives ``127.0.0.1:PORT``. Blobs lie in ``folder``.

        Without ``folder`` it makes one, which `stop` removes. ToolError when something is missing.
        """
        program = process.which("docker-registry", hint=_HINT)
        if folder is None:
            folder = self._own_folder = Path(tempfile.mkdtemp(prefix="sqshpipe-registry-", dir="/var/tmp"))
        folder.mkdir(parents=True, exist_ok=True)
        if self._auth is None:
            self._write_passwords(folder / "htpasswd")
        for _ in range(_ATTEMPTS):
            self.address = f"127.0.0.1:{_free_port()}"
            configuration = folder / "config.yml"
            configuration.write_text(self._configuration(folder))
            with (folder / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    # should this process be killed, the registry goes with it
                    ["setpriv", "--pdeathsig", "KILL", str(program), "serve", str(configuration)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=_ENVIRONMENT,
                    start_new_session=True,
                )
            if self._ready():
                return self.address
            self._end()
        said = (folder / "log").read_text(errors="replace").strip().splitlines()[-3:]
        self.stop()
        raise ToolError("docker-registry did not start: " + " | ".join(said), hint=_HINT)

    def stop(self) -> None:
        """End it; safe to call twice."""
        self._end()
        if self._own_folder is not None:
            shutil.rmtree(self._own_folder, ignore_errors=True)
            self._own_folder = None

    @property
    def credentials(self) -> Credentials:
        """What a client has to show."""
        return Credentials(username=self.username, password=self.password)

    @property
    def variables(self) -> Mapping[str, str]:
        """What sqshpipe reads to use this registry."""
        return {
            "SQSHPIPE_REGISTRY": self.address,
            "SQSHPIPE_REGISTRY_USER": self.username,
            "SQSHPIPE_REGISTRY_PASSWORD": self.password,
        }

    def _end(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _ready(self) -> bool:
        end = time.monotonic() + _READY_SECONDS
        while time.monotonic() < end and self._process is not None and self._process.poll() is None:
            if _answers(self.address):
                # another program could have taken the port in between: ours must still be alive
                return self._process.poll() is None
            time.sleep(0.05)
        return False

    def _write_passwords(self, path: Path) -> None:
        program = process.which("htpasswd", hint=_HINT)
        # -i: the password from stdin; -B -C 4: bcrypt, which the registry asks for, at the least cost
        result = process.run([program, "-niBC", "4", self.username], stdin=self.password.encode())
        path.touch(mode=0o600)
        path.write_text(result.stdout)

    def _configuration(self, folder: Path) -> str:
        auth = self._auth
        if auth is None:
            auth = f"auth:\n  htpasswd:\n    realm: private\n    path: {folder / 'htpasswd'}\n"
        return (
            "version: 0.1\n"
            "log: {level: warn, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {folder / 'data'}}}, delete: {{enabled: true}}}}\n"
            f"http: {{addr: '{self.address}', secret: {secrets.token_hex(16)}}}\n"
            f"{auth}"
        )


class ContainerRegistry:
    """A registry that is a container of `engine`, for machines without docker-registry; a context manager.

    It listens on loopback alone and asks for no password. An image that the engine does not have is pulled.
    """

    credentials: Credentials | None = None

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._container = ""
        self.address = ""

    def __enter__(self) -> ContainerRegistry:  # noqa: PYI034 - Self is not in Python 3.10
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def variables(self) -> Mapping[str, str]:
        """What sqshpipe reads to use this registry."""
        return {"SQSHPIPE_REGISTRY": self.address}

    def start(self) -> str:
        """Start it and wait until it answers; gives ``127.0.0.1:PORT``. ToolError when it does not."""
        port = _free_port()
        self.address = f"127.0.0.1:{port}"
        client = docker.APIClient(base_url=self._engine.host, version="auto")
        try:
            pull_if_missing(client, CONTAINER_IMAGE, hint=_HINT)
            created = client.create_container(CONTAINER_IMAGE, **self._settings(client, port))
            self._container = created["Id"]
            client.start(self._container)
            end = time.monotonic() + _READY_SECONDS
            while not _answers(self.address):
                if time.monotonic() > end:
                    said = client.logs(self._container, tail=3).decode(errors="replace").strip()
                    raise ToolError(f"the container of {CONTAINER_IMAGE} does not answer: {said}", hint=_HINT)
                time.sleep(0.05)
        except DockerException as error:
            self.stop()
            raise ToolError(f"the registry's container does not start: {error}", hint=_HINT) from error
        except BaseException:
            self.stop()
            raise
        finally:
            client.close()
        return self.address

    def stop(self) -> None:
        """Remove the container with its data; safe to call twice."""
        container, self._container = self._container, ""
        if container:
            client = docker.APIClient(base_url=self._engine.host, version="auto")
            with contextlib.closing(client), contextlib.suppress(DockerException):
                client.remove_container(container, force=True, v=True)

    def _settings(self, client: docker.APIClient, port: int) -> Mapping[str, Any]:
        """A published port; on an engine without a bridge, the network of the engine's machine."""
        if self._engine.default_network() is None:
            host = client.create_host_config(port_bindings={5000: ("127.0.0.1", port)})
            return {"host_config": host, "ports": [5000]}
        host = client.create_host_config(network_mode="host")
        return {"host_config": host, "environment": {"REGISTRY_HTTP_ADDR": self.address}}


@contextmanager
def registry_for(engine: Engine, folder: Path | None = None) -> Iterator[PrivateRegistry | ContainerRegistry]:
    """A running registry: docker-registry with a password where it is installed, else a container.

    The former keeps its blobs in `folder`, which is removed at the end; None for one of its own. Raises
    ToolError when neither can be had.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    if not all(shutil.which(program, path=path) for program in _PROGRAMS):
        with ContainerRegistry(engine) as container:
            yield container
        return
    registry = PrivateRegistry()
    try:
        registry.start(folder)
        yield registry
    finally:
        registry.stop()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _answers(address: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://{address}/v2/", trust_env=False).status_code in (200, 401)
    return False


# No proxy and no OTEL settings of the environment: it talks to nobody.
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
