"""Quotas and file systems without an inode left, for real, in each stage that writes; disks that are full by
their bytes are beside the stages' own tests. Looks at the space see neither: all fail in the middle.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from demo.registry import PrivateRegistry
from pipeline.config.types import ConvertOptions
from pipeline.convert.convert import convert
from pipeline.errors import ToolError
from pipeline.oci.digest import Digest
from pipeline.oci.layout import open_layout
from pipeline.oci.manifest import OCI_LAYER, Descriptor
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials
from pipeline.registry.source import RegistrySource
from pipeline.scan.trivy import Trivy
from tests.support.images.layers import LayerBuilder, write_layout
from tests.support.images.pushed import push_image
from tests.support.store.releases import new_store, publish

pytestmark = pytest.mark.needs("root", "mount", "mkfs.btrfs", "btrfs", "/dev/loop-control")
REPORT = '{"SchemaVersion": 2, "Metadata": {"OS": {"Family": "debian"}}}'
LINUX = Platform(os="linux", architecture="amd64")


@dataclass(frozen=True, slots=True, kw_only=True)
class Small:
    """A folder that does not take much, until `lift` is called."""

    folder: Path
    lift: Callable[[], None]


def run(*argv: object) -> None:
    subprocess.run([str(word) for word in argv], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def small(kind: str, tmp_path: Path) -> Iterator[Small]:
    """``quota``: 3 MB of btrfs, which answers EDQUOT; ``inodes``: room for 12 files in memory."""
    point = tmp_path / "small"
    point.mkdir()
    if kind == "inodes":
        run("mount", "-t", "tmpfs", "-o", "size=200m,nr_inodes=12", "tmpfs", point)
        folder, lift = point, lambda: run("mount", "-o", "remount,nr_inodes=9999", point)
    else:
        with (tmp_path / "btrfs.img").open("wb") as file:
            file.truncate(400 << 20)
        run("mkfs.btrfs", "-q", tmp_path / "btrfs.img")
        run("mount", "-o", "loop", tmp_path / "btrfs.img", point)
        folder = point / "team"
        run("btrfs", "quota", "enable", point)
        run("btrfs", "subvolume", "create", folder)
        run("btrfs", "qgroup", "limit", "3M", folder)
        lift = lambda: run("btrfs", "qgroup", "limit", "none", folder)  # noqa: E731
    yield Small(folder=folder, lift=lift)
    run("umount", point)


def large(tmp_path: Path) -> Path:
    layer = LayerBuilder().dir("bin").file("bin/sh", b"#!\n", mode=0o755)
    for number in range(40):
        layer.file(f"f{number}", os.urandom(200_000))
    write_layout(tmp_path / "image", [layer])
    return tmp_path / "image"


WRITES = (
    *(("native", place, "quota") for place in ("cache", "out")),
    *(("mksquashfs", place, "quota") for place in ("scratch", "out")),
    ("mksquashfs", "scratch", "inodes"),
)


@pytest.mark.needs("mksquashfs")
@pytest.mark.parametrize(("converter", "full", "kind"), WRITES)
def test_a_conversion(
    converter: str, full: str, kind: str, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.convert.mksquashfs.require_space", lambda _needs: None)
    places = {name: tmp_path / name for name in ("cache", "out", "scratch")} | {full: small.folder}
    places["out"].mkdir(exist_ok=True)
    source = open_layout(large(tmp_path), platform=LINUX)

    def attempt() -> None:
        convert(
            source,
            ConvertOptions(converter=converter),  # type: ignore[arg-type]
            output=places["out"] / "x.sqsh",
            scratch=places["scratch"],
            cache=places["cache"],
        )

    with pytest.raises(ToolError, match=r"space|quota") as caught:
        attempt()
    assert str(small.folder) in caught.value.message
    assert caught.value.hint
    assert list(places["out"].glob("*")) in ([], [places["out"] / "packs"])
    assert list(places["scratch"].glob("*")) == []
    small.lift()
    attempt()
    assert (places["out"] / "x.sqsh").exists()


@pytest.mark.needs("docker-registry")
@pytest.mark.parametrize("kind", ["quota"])
def test_enroot(
    small: Small, registry: PrivateRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in that unpacks as enroot does, with the same tar, into the folder that it is given."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "enroot").write_text(
        "#!/bin/sh\nset -e\n[ $1 != version ] || { echo 4.1.2; exit; }\n"
        f'cd "$ENROOT_TEMP_PATH"\nfor layer in {tmp_path}/image/blobs/sha256/*; do\n'
        '[ "$(stat -c %s $layer)" -lt 1000000 ] || tar -xzf $layer\ndone\n'
        'while [ "$1" != --output ]; do shift; done\necho squashfs > "$2"\n'
    )
    (tools / "enroot").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    mine = Credentials(username=registry.username, password=registry.password)
    layout = open_layout(large(tmp_path), platform=LINUX)
    with RegistryClient(registry.address, credentials=lambda _: mine) as client:
        for blob in (layout.manifest().config, *layout.manifest().layers):
            with (tmp_path / "image/blobs/sha256" / blob.digest.hex).open("rb") as stream:
                client.push_blob("full/enroot", blob, stream)
        manifest = layout.manifest()
        client.put_manifest("full/enroot", "v1", manifest.raw, manifest.media_type)

        def attempt() -> None:
            convert(
                RegistrySource(client, "full/enroot", manifest),
                ConvertOptions(converter="enroot"),
                output=tmp_path / "x.sqsh",
                scratch=small.folder,
                cache=tmp_path / "cache",
            )

        with pytest.raises(ToolError, match="Disk quota exceeded") as caught:
            attempt()
        assert "SQSHPIPE_SCRATCH" in caught.value.hint
        assert list(small.folder.iterdir()) == []
        assert not (tmp_path / "x.sqsh").exists()


@pytest.mark.needs("docker-registry")
@pytest.mark.parametrize("kind", ["quota", "inodes"])
def test_a_download(kind: str, small: Small, registry: PrivateRegistry) -> None:
    mine = Credentials(username=registry.username, password=registry.password)
    data = os.urandom(6_000_000)
    blob = Descriptor(media_type=OCI_LAYER, digest=Digest.of(data), size=len(data))
    for number in range(11 if kind == "inodes" else 0):
        (small.folder / f"{number}").touch()
    with RegistryClient(registry.address, credentials=lambda _: mine) as client:
        push_image(client, f"full/{kind}", data)
        with pytest.raises(ToolError, match="no space left") as caught:
            client.fetch_blob(f"full/{kind}", blob, small.folder / "blob")
        assert str(small.folder) in caught.value.message
        assert not (small.folder / "blob").exists()
        small.lift()
        assert client.fetch_blob(f"full/{kind}", blob, small.folder / "blob").read_bytes() == data


@pytest.mark.parametrize("kind", ["quota", "inodes"])
def test_a_scan(kind: str, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for trivy that unpacks into TMPDIR what a large layer would be."""
    program = tmp_path / "trivy"
    program.write_text(
        f"#!{sys.executable}\nimport os, pathlib, sys, tempfile\n"
        'if "--version" in sys.argv or "version" in sys.argv: sys.exit(print("Version: 0.50.0"))\n'
        'with tempfile.TemporaryDirectory(dir=os.environ["TMPDIR"]) as folder:\n'
        "    try:\n"
        '        for number in range(20): (pathlib.Path(folder) / f"{number}").write_bytes(bytes(300_000))\n'
        '    except OSError as error: sys.exit(f"FATAL write: {error.strerror}")\n'
        f'pathlib.Path(sys.argv[sys.argv.index("--output") + 1]).write_text({REPORT!r})\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(small.folder))
    monkeypatch.setattr(tempfile, "tempdir", str(small.folder))
    image = Reference.parse(f"registry.example.com/demo@sha256:{hashlib.sha256(b'x').hexdigest()}")
    with pytest.raises(ToolError, match=r"quota exceeded|No space left") as caught:
        Trivy.find().scan_image(image, None, platform="linux/amd64")
    assert "TMPDIR" in caught.value.hint
    small.lift()
    assert Trivy.find().scan_image(image, None, platform="linux/amd64").findings == ()
    assert list(small.folder.iterdir()) == []


@pytest.mark.parametrize("kind", ["inodes"])
def test_a_store(small: Small) -> None:
    """What was published before stays; what could not be is not there."""
    store = new_store(small.folder / "containers")

    def publish_nine() -> None:
        for number in range(9):
            publish(store, f"v1.{number}")

    with pytest.raises(ToolError, match="no space left"):
        publish_nine()
    reported = [line.version for line in store.listed("demo")]
    for version in reported:
        assert store.resolve(f"demo:{version}").path.read_bytes() == version.encode()
    small.lift()
    publish_nine()
    store.promote("demo:v1.8", "stable")
    assert store.resolve("demo:stable").version == "v1.8"
