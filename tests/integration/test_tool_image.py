"""The container image of sqshpipe, built by sqshpipe from its wheel, on a base that has its packages."""

from __future__ import annotations

import base64
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import docker
import pytest

from demo.base import write_rootfs
from demo.engine import PrivateEngine
from demo.registry import PrivateRegistry
from pipeline import __version__
from pipeline.docker.engine import Engine
from pipeline.oci.reference import Reference
from pipeline.registry.credentials import Credentials
from tests.support.store.releases import new_store

ROOT = Path(__file__).parents[2]
PLACE = "usr/lib/python3/dist-packages"
STDLIB = Path("/usr/lib/python3.11")

pytestmark = [
    pytest.mark.needs("dockerd", "docker-registry", "htpasswd", "mksquashfs", "root", "ldd"),
    pytest.mark.skipif(
        sys.version_info[:2] != (3, 11) or not STDLIB.is_dir(),
        reason="the base has Debian's Python and the packages from here: both have to be 3.11",
    ),
]


def _packages() -> list[tuple[Path, str]]:
    """Files of pip and of the packages of the lock that are installed here, and their places in the base."""
    names = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE)) | {"pip"}
    found = []
    for name in sorted(names):
        try:
            files = importlib.metadata.files(name) or []
        except importlib.metadata.PackageNotFoundError:  # for another system or Python
            continue
        for file in files:
            source = Path(str(file.locate()))
            if ".." not in file.parts and source.is_file() and source.suffix != ".pyc":
                found.append((source, f"{PLACE}/{file}"))
    return found


def _system() -> list[tuple[Path, str]]:
    """The whole standard library, mksquashfs and a few commands, with the libraries that they load."""
    programs = [Path(str(shutil.which(name))).resolve() for name in ("mksquashfs", "unsquashfs", "rm", "env")]
    modules = [path for path in STDLIB.rglob("*") if path.is_file() and path.suffix in (".py", ".so")]
    loaded = subprocess.run(
        ["ldd", *programs, *(path for path in modules if path.suffix == ".so")],
        capture_output=True,
        text=True,
    ).stdout
    libraries = {Path(name) for name in re.findall(r"(/\S+) \(0x", loaded)}
    named = [(path.resolve(), str(path)[1:]) for path in [*modules, *libraries]]
    return [*named, *((path, f"usr/bin/{path.name}") for path in programs)]


@pytest.fixture(scope="module")
def base(
    engine: PrivateEngine, registry: PrivateRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Reference:
    """Python with pip and all locked packages, and mksquashfs: nothing has to be fetched."""
    tar = tmp_path_factory.mktemp("base") / "rootfs.tar"
    write_rootfs(tar)
    with tarfile.open(tar, "a") as members:
        there = set(members.getnames())
        for source, name in [*_packages(), *_system()]:
            if name not in there:
                there.add(name)
                members.add(source, name)
    reference = Reference.parse(f"{registry.address}/base/python:3.11-packages")
    client = docker.APIClient(base_url=engine.host, version="auto")
    try:
        changes = ["ENV PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8"]
        client.import_image(src=str(tar), repository=reference.name, tag=reference.tag, changes=changes)
    finally:
        client.close()
    with Engine.connect(engine.host) as connected:
        connected.push(reference, Credentials(username=registry.username, password=registry.password))
    return reference


@pytest.mark.timeout(600)
def test_sqshpipe_builds_its_own_image_and_the_image_works(
    base: Reference, engine: PrivateEngine, registry: PrivateRegistry, tmp_path: Path
) -> None:
    checkout, store = tmp_path / "checkout", new_store(tmp_path / "store")
    shutil.copytree(ROOT / "dockerfiles" / "sqshpipe", checkout / "dockerfiles" / "sqshpipe")
    shutil.copy(ROOT / "requirements.txt", checkout)
    (checkout / "not-sent").write_bytes(os.urandom(1 << 20))
    wheel = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", checkout / "dist", ROOT]
    subprocess.run(wheel, check=True, timeout=240, stdout=subprocess.DEVNULL)
    config = checkout / "dockerfiles" / "sqshpipe" / "images.yaml"
    text = config.read_text()
    for before, after in (
        ("docker.io/library/python:3.12-slim-trixie", str(base)),
        ("docker-buildx docker-cli git squashfs-tools", '""'),
        ("images:\n", "defaults: {scan: {scanner: none}}\nimages:\n"),
    ):
        assert before in text
        text = text.replace(before, after)
    config.write_text(text)
    login = base64.b64encode(f"{registry.username}:{registry.password}".encode()).decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {registry.address: {"auth": login}}}))
    environment = {
        **os.environ,
        "DOCKER_HOST": engine.host,
        "DOCKER_CONFIG": str(tmp_path),
        "SQSHPIPE_CACHE": str(tmp_path / "cache"),
        "SQSHPIPE_SCRATCH": str(tmp_path / "scratch"),
        "SQSHPIPE_STORE": str(store.root),
        "SQSHPIPE_REGISTRY": f"{registry.address}/tool",
    }

    def sqshpipe(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *words],
            cwd=checkout,
            env={**environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    made = sqshpipe("release", "sqshpipe", "--tag", "v1", "--config", str(config))
    assert made == f"{store.root}/sqshpipe/v1.sqsh\n"
    # as a node runs it
    assert __version__ in sqshpipe("run", "sqshpipe:v1", "--", "sqshpipe", "--version")
    inside = "python3 -m sqshpipe --help && mksquashfs -version && "
    inside += "python3 -c 'import pipeline; print(pipeline.__file__)'"
    said = sqshpipe("run", "sqshpipe:v1", "--", "sh", "-c", inside)
    assert "store" in said
    assert "mksquashfs version" in said
    assert "checkout" not in said
    # as a CI system does
    client = docker.from_env(environment=environment)
    try:
        image = f"{registry.address}/tool/sqshpipe:v1"
        client.images.pull(image, auth_config={"username": registry.username, "password": registry.password})
        assert b"Usage: sqshpipe" in client.containers.run(image, network_mode="none", remove=True)
        shell = ["sh", "-c", "sqshpipe config schema | python3 -m json.tool && ls /tmp"]
        assert b"sqshpipe images.yaml" in client.containers.run(
            image, shell, network_mode="none", remove=True
        )
    finally:
        client.close()
