"""The hostile images by the enroot converter: what is refused is refused before enroot is run.

The enroot here is a fake that takes the layers which it finds in its cache, as the real one does, and gives
the file that the native converter has made of them. Where the real one is installed it gets every image too.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.registry import PrivateRegistry
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import Descriptor
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials
from tests.support.faults.bounded import Ended
from tests.support.faults.hostile_place import PEAK, Place, cleared, judge, prepared, untouched, written
from tests.support.images.hostile_images import HOSTILE_IMAGES, HostileImage

pytestmark = pytest.mark.needs("mksquashfs", "docker-registry")

REAL = shutil.which("enroot")
_FAKE = """#!{python}
import os, pathlib, shutil, subprocess, sys
if sys.argv[1] == "version":
    print("4.1.2")
    sys.exit()
here = pathlib.Path({folder!r})
(here / "asked").write_text(" ".join(sys.argv))
for name in (here / "digests").read_text().split():
    stored = pathlib.Path(os.environ["ENROOT_CACHE_PATH"]) / name
    subprocess.run(["zstd", "-qt", stored], check=True)
shutil.copy(here / "native.sqsh", sys.argv[sys.argv.index("--output") + 1])
"""
# Sound for the other converters, and not for enroot: what it would run, split or misread.
_MISREAD = {
    "config: quotes, lines, $(…), backticks, ${VAR}": "run or misread",
    "a path of 4,095 bytes": "",  # its own temporary folder takes the rest of what the kernel allows
}
# Manifests are refused when they are read, before there is a converter; tars by the reader of `native`.
CASES = [
    dataclasses.replace(case, refused=_MISREAD.get(case.name) or case.refused)
    for case in HOSTILE_IMAGES
    if not case.name.startswith(("tar:", "manifest:", "index.json", "an index"))
]


@pytest.fixture(scope="module")
def client(registry: PrivateRegistry) -> Iterator[RegistryClient]:
    found = Credentials(username=registry.username, password=registry.password)
    with RegistryClient(registry.address, credentials=lambda _host: found) as made:
        yield made


def _environment(folder: Path, registry: PrivateRegistry, path: str) -> dict[str, str]:
    login = base64.b64encode(f"{registry.username}:{registry.password}".encode()).decode()
    (folder / "docker").mkdir()
    text = json.dumps({"auths": {registry.address: {"auth": login}}})
    (folder / "docker" / "config.json").write_text(text)
    return {"DOCKER_CONFIG": str(folder / "docker"), "PATH": f"{path}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory, registry: PrivateRegistry) -> Iterator[Place]:
    folder, tools = tmp_path_factory.mktemp("hostile-enroot"), tmp_path_factory.mktemp("tools")
    (tools / "enroot").write_text(_FAKE.format(python=sys.executable, folder=str(folder / "reported")))
    (tools / "enroot").chmod(0o755)
    with prepared(folder, **_environment(tools, registry, str(tools))) as place:
        yield place


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, registry: PrivateRegistry) -> Iterator[Place]:
    outside = tmp_path_factory.mktemp("login")
    folder = tmp_path_factory.mktemp("hostile-real")
    with prepared(folder, **_environment(outside, registry, str(outside))) as place:
        yield place


def pushed(case: HostileImage, place: Place, client: RegistryClient, repository: str) -> str:
    """The image in the registry, just as its bytes are."""
    written(case, place)
    image = place.folder / "image"
    top = json.loads((image / "index.json").read_bytes())["manifests"][0]
    blobs = image / "blobs" / "sha256"
    raw = (blobs / top["digest"][7:]).read_bytes()
    manifest = json.loads(raw)
    for each in {blob["digest"]: blob for blob in [manifest["config"], *manifest["layers"]]}.values():
        descriptor = Descriptor(
            media_type=each["mediaType"], digest=Digest.parse(each["digest"]), size=each["size"]
        )
        with (blobs / descriptor.digest.hex).open("rb") as stream:
            client.push_blob(repository, descriptor, stream)
    client.put_manifest(repository, "v1", raw, top["mediaType"])
    reported = place.folder / "reported"
    (reported / "digests").write_text(" ".join(each["digest"][7:] for each in manifest["layers"]))
    (reported / "asked").unlink(missing_ok=True)
    return f"docker://{client.host}/{repository}:v1"


def converted(case: HostileImage, place: Place, source: str, converter: str = "enroot") -> Ended:
    output = place.folder / "out" / "x.sqsh"
    output.unlink(missing_ok=True)
    shutil.rmtree(place.folder / "cache" / "enroot", ignore_errors=True)
    return place.bounded.run(
        "convert", source, "-o", output, "--converter", converter, *case.flags, memory=16 << 30
    )


@pytest.mark.needs("zstd")
@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_refused_before_enroot_sees_it(number: int, fake: Place, client: RegistryClient) -> None:
    case, reported = CASES[number], fake.folder / "reported"
    with cleared(fake), untouched(fake):
        source = pushed(case, fake, client, f"hostile/fake-{number}")
        if not case.refused:
            output = fake.folder / "out" / "x.sqsh"
            output.unlink(missing_ok=True)
            ended = fake.run("convert", source, "-o", output, "--converter", "native", *case.flags)
            assert ended.returncode == 0, ended.stderr
            output.replace(reported / "native.sqsh")
        ended = converted(case, fake, source)
        judge(case, ended)
        assert (reported / "asked").exists() is not bool(case.refused)
        if case.refused:
            kept = [path.name for path in (fake.folder / "cache" / "enroot").glob("*.*")]
            assert kept == [], "half a layer stays"


def test_auto_makes_what_enroot_would_misread(fake: Place, client: RegistryClient) -> None:
    case = next(case for case in HOSTILE_IMAGES if _MISREAD.get(case.name))
    with cleared(fake), untouched(fake):
        ended = converted(case, fake, pushed(case, fake, client, "hostile/auto"), "auto")
        judge(case, ended)
        assert "native" in ended.stderr
        assert not (fake.folder / "reported" / "asked").exists()


@pytest.mark.skipif(REAL is None, reason="enroot is not installed")
@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_for_real(number: int, real: Place, client: RegistryClient) -> None:
    """A file that is the image, or a sentence; what enroot cannot do names another converter."""
    case = CASES[number]
    with cleared(real), untouched(real):
        ended = converted(case, real, pushed(case, real, client, f"hostile/real-{number}"))
        if case.refused or ended.returncode == 0:
            judge(case, ended)
            return
        assert ended.returncode in (3, 7), ended.stderr[-1500:]
        assert "Traceback" not in ended.stderr
        assert "unexpected" not in ended.stderr
        assert ended.peak < PEAK
        assert "converter native" in ended.stderr, ended.stderr[-1500:]
