"""ECR and nvcr.io under their own names on loopback, for programs of their own: engine, sqshpipe, scanners.

A hosts file of our own is bound over /etc/hosts in private mount namespaces alone; the machine's stays as it
is. Each name gets a loopback address that nobody else uses, so that port 80 is free there. Needs root.
"""

from __future__ import annotations

import base64
import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from demo.engine import PrivateEngine
from tests.support.servers import aws
from tests.support.servers.ecr_front import HOST, EcrFront
from tests.support.servers.registry import FaultyProxy, TokenRegistry

NGC = "nvcr.io"
ROOT = Path(__file__).parents[3]
_BIND = 'mount --bind "$1" /etc/hosts; shift; exec "$@"'


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What the programs see: ECR, nvcr.io with tokens, and how to run sqshpipe among them."""

    ecr: EcrFront
    ngc: TokenRegistry
    ngc_front: FaultyProxy
    engine: PrivateEngine
    folder: Path
    hosts: Path
    said: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        quiet = ("SKIP_DB_UPDATE", "SKIP_JAVA_DB_UPDATE", "SKIP_VERSION_CHECK", "OFFLINE_SCAN")
        return {
            **{f"TRIVY_{name}": "true" for name in quiet},
            "TRIVY_CACHE_DIR": f"{self.folder}/trivy",
            "SYFT_CHECK_FOR_APP_UPDATE": "false",
            "PATH": path,
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder / "tmp"),
            "DOCKER_HOST": self.engine.host,
            "SQSHPIPE_PLAIN_HTTP": f"{HOST},{NGC}",
            "SQSHPIPE_CACHE": f"{self.folder}/cache",
            "SQSHPIPE_SCRATCH": f"{self.folder}/scratch",
            "NGC_API_KEY": self.ngc.password,
            "AWS_ENDPOINT_URL": f"http://{self.ecr.address}",
            "AWS_ACCESS_KEY_ID": "AKIA-made-up",
            "AWS_SECRET_ACCESS_KEY": "secret-key-of-the-test",
            "AWS_DEFAULT_REGION": aws.REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def run(self, *words: str, check: int = 0, **changed: str) -> subprocess.CompletedProcess[str]:
        """``sqshpipe WORDS`` in the project's folder; its exit code has to be ``check``."""
        program = [sys.executable, "-m", "pipeline", *words]
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-euc", _BIND, "sh", str(self.hosts), *program],
            cwd=self.folder / "project",
            env={**self.environment, **changed},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        self.said.append(done.stdout + done.stderr)
        assert done.returncode == check, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def secrets(self) -> set[str]:
        """Every password, token and key that was used, in each form in which it could be written down."""
        pairs = {*self.ecr.passwords, f"{self.ngc.username}:{self.ngc.password}"}
        found = {pair.partition(":")[2] for pair in pairs}
        found |= {base64.b64encode(pair.encode()).decode() for pair in pairs}
        found.add(self.environment["AWS_SECRET_ACCESS_KEY"])
        for seen in (*self.ecr.seen, *self.ngc_front.seen):
            found.add(seen.headers.get("Authorization", "").rpartition(" ")[2])
        return found - {""}


@contextlib.contextmanager
def world(folder: Path) -> Iterator[World]:
    """Everything started, and known to an engine of its own by name; gone at the end."""
    for name in ("project", "tmp"):
        (folder / name).mkdir(parents=True)
    hosts = folder / "hosts"
    with contextlib.ExitStack() as stack:
        ecr = stack.enter_context(EcrFront((_free_address(), 80)))
        ngc = stack.enter_context(TokenRegistry(password="nvapi-key-of-the-test"))
        ngc_front = stack.enter_context(FaultyProxy(ngc.address, (_free_address(), 80)))
        names = {ecr.address: HOST, ngc_front.address: NGC}
        lines = [f"{address.partition(':')[0]} {name}" for address, name in names.items()]
        hosts.write_text("\n".join(["127.0.0.1 localhost", *lines]) + "\n")
        engine = stack.enter_context(PrivateEngine(plain_http=(HOST, NGC), hosts=hosts))
        yield World(ecr=ecr, ngc=ngc, ngc_front=ngc_front, engine=engine, folder=folder, hosts=hosts)


def _free_address() -> str:
    for _ in range(50):
        address = "127." + ".".join(str(random.randint(2, 250)) for _ in range(3))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((address, 80))
            return address
    raise OSError("no loopback address has port 80 free")


def installed(tool: str, path: str) -> bool:
    return shutil.which(tool, path=path) is not None


class Watched:
    """Gathers the argument lists of all processes while it is entered."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watched:  # noqa: PYI034 - Self is not in Python 3.10
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        own = str(os.getpid())
        while not self._stop.wait(0.01):
            for folder in Path("/proc").iterdir():
                if folder.name.isdigit() and folder.name != own:
                    with contextlib.suppress(OSError):
                        self.seen.add((folder / "cmdline").read_bytes())
