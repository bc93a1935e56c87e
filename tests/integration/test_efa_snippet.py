"""The lines of a Dockerfile that the guide gives for EFA, built by the real BuildKit.

AWS's archive cannot be had here: curl in the base brings one whose installer leaves the two libraries where
AWS's does, and apt-get does nothing. All else is real: the shell, tar, the checksum and BuildKit.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.engine import PrivateEngine
from pipeline.docker import buildkit
from pipeline.docker.engine import Engine
from pipeline.node.check import Host, check
from tests.support.images import small_root

pytestmark = pytest.mark.needs("dockerd", "docker", "mksquashfs", "root")

GUIDES = sorted((Path(__file__).parents[2] / "docs" / "how-to").glob("parallelcluster*.md"))
PROGRAMS = ("mkdir", "touch", "rm", "tar", "gzip", "sha256sum", "cp")
CURL = '#!/bin/sh\nfor last; do :; done\ncp /installer.tar.gz "${last##*/}"\n'
INSTALLER = """\
#!/bin/sh
echo "$*" > /arguments
mkdir -p /opt/amazon/efa/lib {plugin}
touch /opt/amazon/efa/lib/libfabric.so.1 {plugin}/libnccl-net.so
"""
PLUGIN = "/opt/amazon/ofi-nccl/lib"
EFA_NODE = Host(machine=os.uname().machine, driver="550.54.15", cuda="12.4", efa=True)


@pytest.fixture(scope="module")
def connected(engine: PrivateEngine) -> Iterator[Engine]:
    with Engine.connect(engine.host) as found:
        yield found


def snippet(guide: Path) -> str:
    (found,) = re.findall(r"```dockerfile\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


def context(folder: Path, lines: str, plugin: str) -> str:
    """A context for the lines on a small base; gives the archive's sha256."""
    root = small_root.write(folder / "root")
    for name in PROGRAMS:
        small_root.add_program(root, Path(shutil.which(name) or name), f"bin/{name}")
    for name, text in (("curl", CURL), ("apt-get", "#!/bin/sh\n")):
        (root / "bin" / name).write_text(text)
        (root / "bin" / name).chmod(0o755)
    with tarfile.open(root / "installer.tar.gz", "w:gz") as archive:
        data = INSTALLER.format(plugin=plugin).encode()
        member = tarfile.TarInfo("aws-efa-installer/efa_installer.sh")
        member.size, member.mode = len(data), 0o755
        archive.addfile(member, io.BytesIO(data))
    first = "FROM scratch\nCOPY root/ /\nENV PATH=/bin LD_LIBRARY_PATH=/base\n"
    (folder / "Dockerfile").write_text(first + lines + 'RUN echo "$LD_LIBRARY_PATH" > /found\n')
    return hashlib.sha256((root / "installer.tar.gz").read_bytes()).hexdigest()


def build(engine: Engine, folder: Path, sha256: str) -> subprocess.CompletedProcess[bytes]:
    frontend = buildkit.find_frontend(engine)
    assert frontend is not None
    arguments = [f"--build-arg=EFA_INSTALLER{name}" for name in ("=1.43.2", f"_SHA256={sha256}")]
    return subprocess.run(
        [
            *frontend.argv,
            "--network=host",
            *arguments,
            "--output",
            f"type=tar,dest={folder}/out.tar",
            str(folder),
        ],
        env={**os.environ, "DOCKER_HOST": engine.host, "DOCKER_BUILDKIT": "1"},
        capture_output=True,
        timeout=120,
    )


# where installers of different years put the plugin
@pytest.mark.parametrize("plugin", [PLUGIN, f"{PLUGIN}/x86_64-linux-gnu"])
def test_the_image_has_what_efa_needs_and_finds_it(connected: Engine, tmp_path: Path, plugin: str) -> None:
    done = build(connected, tmp_path, context(tmp_path, snippet(GUIDES[-1]), plugin))
    assert done.returncode == 0, done.stderr.decode()
    tree = tmp_path / "tree"
    with tarfile.open(tmp_path / "out.tar") as image:
        image.extractall(tree)
    assert "--skip-kmod" in (tree / "arguments").read_text().split(), "the kernel's part comes from the node"
    assert not list((tree / "tmp").glob("aws-efa-installer")), "the archive does not stay in the image"
    folders = (tree / "found").read_text().strip().split(":")
    assert {"/opt/amazon/efa/lib", plugin} <= set(folders)
    assert folders[-1] == "/base", "what the base finds stays"
    verdicts = {each.what: each.verdict for each in check(small_root.squash(tree), EFA_NODE, efa=True)}
    assert (verdicts["libfabric"], verdicts["NCCL network plugin"]) == ("ok", "ok")


def test_another_archive_is_not_run(connected: Engine, tmp_path: Path) -> None:
    context(tmp_path, snippet(GUIDES[-1]), PLUGIN)
    done = build(connected, tmp_path, "0" * 64)
    assert done.returncode != 0
    assert b"did NOT match" in done.stderr or b"FAILED" in done.stderr


def test_all_guides_give_the_same_lines() -> None:
    assert len(GUIDES) == 2
    assert snippet(GUIDES[0]) == snippet(GUIDES[1])
