"""Layers on whose edges readers of tar differ: we make of them what the Docker Engine makes of them.

One difference is meant: of a folder `.wh..wh.plnk` with something in it the engine's overlay2 driver leaves
the folder, where its others and containerd leave nothing.
"""

from __future__ import annotations

import contextlib
import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from demo.engine import PrivateEngine
from pipeline.convert.tree import read_tree
from pipeline.errors import FormatError
from pipeline.oci.archive import open_archive
from pipeline.progress import NO_TASK
from tests.support.images.images import LINUX
from tests.support.images.layers import LayerBuilder, write_docker_archive

BASE = LayerBuilder().dir("bin").file("bin/sh", b"#!\n", mode=0o755).dir("d").file("d/x", b"x")
LAST = LayerBuilder().file("a", b"1" * 700)
MEMBER = LAST.tar()[:-1024]
AUFS = (
    LayerBuilder()
    .file(".wh..wh.aufs")
    .dir(".wh..wh.orph")
    .dir(".wh..wh.plnk")
    .file(".wh..wh.plnk/77.1", b"shared", mode=0o640)
)
LAYERS = {
    "AUFS": AUFS.hardlink("a", ".wh..wh.plnk/77.1").hardlink("d/b", ".wh..wh.plnk/77.1").tar(),
    "a name of AUFS in a folder": LayerBuilder().file("d/.wh..wh.plnk").file("a").tar(),
    "no marker": MEMBER,
    "no padding": MEMBER.rstrip(b"\0"),
    "some padding": MEMBER.rstrip(b"\0") + bytes(5),
    "half a marker": MEMBER + bytes(512),
    "bytes behind the marker": MEMBER + bytes(1024) + b"more",
    "a piece of a header": MEMBER + LAST.tar()[:100],
    "content cut short": MEMBER[:900],
}


def as_the_engine(archive: Path) -> set[str] | None:
    """The paths of a container of the image; None when the engine refuses it."""
    loaded = subprocess.run(["docker", "load", "-i", archive], capture_output=True, check=False)
    if loaded.returncode:
        return None
    made = subprocess.run(
        ["docker", "create", "edge:v1", "/bin/sh"], capture_output=True, check=True, text=True
    )
    tar = subprocess.run(["docker", "export", made.stdout.strip()], capture_output=True, check=True).stdout
    subprocess.run(["docker", "rm", made.stdout.strip()], capture_output=True, check=True)
    subprocess.run(["docker", "rmi", "edge:v1"], capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(tar)) as files:
        return EXPECTED.intersection(files.getnames())


EXPECTED = {"a", "d", "d/b", "d/x", "bin", "bin/sh"}


@pytest.mark.needs("docker", "dockerd", "root")
@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str, engine: PrivateEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine.host)
    archive = tmp_path / "image.tar"
    write_docker_archive(archive, [BASE, LAYERS[name]], tags=["edge:v1"])
    theirs = as_the_engine(archive)
    ours = None
    with contextlib.suppress(FormatError):
        tree = read_tree(open_archive(archive, platform=LINUX), task=NO_TASK)
        assert not [path for path in tree if b".wh." in path]
        ours = EXPECTED.intersection(path.decode() for path in tree)
    assert ours == theirs
