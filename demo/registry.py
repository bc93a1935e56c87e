"""A registry of one's own on loopback that asks for a password: Debian's docker-registry, for demo and
tests."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import httpx

from pipeline.errors import ToolError
from pipeline.system import process

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
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://{self.address}/v2/", trust_env=False).status_code in (200, 401):
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


# No proxy and no OTEL settings of the environment: it talks to nobody.
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
