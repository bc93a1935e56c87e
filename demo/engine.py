"""A private Docker Engine: its own daemon, containerd, images and mounts, gone without trace when stopped."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import final

import docker
import docker.errors

from pipeline.errors import ToolError

INSTALL = "install it with: sudo apt-get install docker.io"
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")

_RUN = "/run/containerd"

# Runs as the first process of a mount and pid namespace of its own, so that one SIGKILL ends daemon,
# containerd, shims and containers together and takes every mount along, whatever the reason of the end.
# - The tmpfs hides a containerd that the machine runs already, which dockerd would otherwise use. dockerd's
#   own sockets go there too: a socket's path may have no more than 107 bytes.
# - A machine without an init system may have no cgroup mounted, without which runc starts nothing.
_LAUNCH = f"""
set -eu
mkdir -p {_RUN}
mount -t tmpfs tmpfs {_RUN}
if ! grep -qE '^[^ ]+ [^ ]+ cgroup2? ' /proc/mounts; then
    mkdir -p /sys/fs/cgroup
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
if [ -n "$1" ]; then
    mount --bind "$1" /etc/hosts
fi
shift
exec "$@"
"""


@final
class PrivateEngine:
    """A dockerd for the demo and the tests; a context manager.

    It needs root and Debian's `docker.io` package, no network and no iptables: builds that run on it use the
    host's network. All its files lie in one folder under `parent`, which is removed at the end. Start it from
    the main thread: the engine ends when the thread that started it ends. `plain_http` names registries,
    beside those on loopback, that it speaks to without TLS; `hosts` is what it reads instead of /etc/hosts.
    `containerd_store` asks for the containerd image store; an engine that is too old for it has its own.

    Raises ToolError when it cannot be started, with the daemon's last lines.
    """

    def __init__(
        self,
        *,
        parent: Path = Path("/var/tmp"),  # not /tmp: images may not fit into memory
        plain_http: tuple[str, ...] = (),
        hosts: Path | None = None,
        containerd_store: bool = False,
    ) -> None:
        self._parent = parent
        self._plain_http = plain_http
        self._hosts = hosts
        self._containerd_store = containerd_store
        self._root: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        """What DOCKER_HOST has to be, ``unix:///…``."""
        if self._root is None:
            raise ToolError("the private Docker Engine is not running")
        return f"unix://{self._root}/s"

    def __enter__(self) -> PrivateEngine:
        self.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, *, patience: float = 60.0) -> None:
        """Start the daemon and wait until it answers, at most `patience` seconds."""
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_SBIN])
        _check_requirements(path)
        self._root = Path(tempfile.mkdtemp(prefix="sqshpipe-engine-", dir=self._parent))
        try:
            self._launch(path)
            self._wait(patience)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the daemon with all that it started and remove its files; harmless when nothing runs."""
        process, self._process = self._process, None
        if process is not None:
            # No polite SIGTERM: nothing of it is wanted any more, and the namespaces clean up behind it.
            process.kill()
            process.wait()
        root, self._root = self._root, None
        if root is not None:
            _remove(root)

    def _launch(self, path: str) -> None:
        assert self._root is not None
        root = self._root
        settings = {
            "data-root": f"{root}/data",
            "exec-root": f"{_RUN}/engine",
            "pidfile": f"{_RUN}/engine.pid",
            "hosts": [self.host],
            # BuildKit takes no address range for a name, so the scheme says it
            "insecure-registries": ["127.0.0.0/8", *(f"http://{host}" for host in self._plain_http)],
            "bridge": "none",
            "iptables": False,
            "ip-forward": False,
            # systemd would get pids of the private namespace
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            **({"features": {"containerd-snapshotter": True}} if self._containerd_store else {}),
        }
        (root / "daemon.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
        argv = ["setpriv", "--pdeathsig", "KILL"]  # should this process be killed, the engine goes with it
        argv += ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        argv += ["sh", "-c", _LAUNCH, "sh", str(self._hosts or "")]
        argv += ["dockerd", "--config-file", f"{root}/daemon.json"]
        with (root / "log").open("wb") as log:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PATH": path},
                start_new_session=True,  # Ctrl-C is for us; we then stop it in order
            )

    def _wait(self, patience: float) -> None:
        assert self._process is not None
        assert self._root is not None
        deadline = time.monotonic() + patience
        while self._process.poll() is None and time.monotonic() < deadline:
            if _answers(self._root / "s"):
                return
            time.sleep(0.05)
        ended = self._process.poll() is not None
        what = "ended at its start" if ended else f"did not answer within {patience:.0f} s"
        raise ToolError(
            f"the private dockerd {what}:",
            details=self._last_lines(),
            hint="run it as root on a machine or VM",
        )

    def _last_lines(self, count: int = 8) -> list[str]:
        assert self._root is not None
        lines = (self._root / "log").read_text(encoding="utf-8", errors="replace").splitlines()
        return lines[-count:]


def pull_if_missing(client: docker.APIClient, name: str, *, hint: str) -> None:
    """Pull the image `name` where the engine does not have it. ToolError, with `hint`, when it cannot."""
    with contextlib.suppress(docker.errors.ImageNotFound):
        client.inspect_image(name)  # type: ignore[no-untyped-call]
        return
    repository, _, tag = name.partition(":")
    try:
        client.pull(repository, tag=tag)
    except docker.errors.DockerException as error:
        raise ToolError(f"the Docker Engine cannot pull {name}: {error}", hint=hint) from error


def _check_requirements(path: str) -> None:
    for tool in ("dockerd", "containerd", "runc", "unshare", "setpriv"):
        if shutil.which(tool, path=path) is None:
            raise ToolError(
                f"{tool} is not installed, so no private Docker Engine can be started", hint=INSTALL
            )
    if os.geteuid() != 0:
        raise ToolError(
            "a private Docker Engine needs root",
            hint="run it as root, or start Docker and join the group docker",
        )


def _answers(path: Path) -> bool:
    """True when the daemon behind this socket says that it is there."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        try:
            connection.connect(str(path))
            connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in connection.recv(64)
        except OSError:
            return False


def _remove(root: Path, patience: float = 10.0) -> None:
    """Delete `root`; the kernel may take a moment to let go of the mounts of a namespace that just ended."""
    deadline = time.monotonic() + patience
    while root.exists():
        shutil.rmtree(root, ignore_errors=time.monotonic() < deadline)
        time.sleep(0.02)
