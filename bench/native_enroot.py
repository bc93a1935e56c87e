"""`enroot import` as the native converter's peer: itself where it is installed, else the tools that it runs.

The real one reads from a registry on loopback, which is started here and whose own time is not counted, and
unpacks gzip with pigz where that is installed, as it does everywhere.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from bench.shell import shell
from demo.registry import PrivateRegistry
from pipeline.convert.enroot_program import Enroot, Places, import_uri
from pipeline.oci.layout import LayoutSource
from pipeline.registry.client import RegistryClient

LEVEL = 3
BLOCK = 131072
SQUASH = ["-comp", "zstd", "-Xcompression-level", str(LEVEL), "-b", str(BLOCK)]
SQUASH += ["-noappend", "-no-progress", "-quiet"]
REPOSITORY = "bench"


class Peer(Protocol):
    """Makes the same image. `source` names it for the native converter, so that both read the same."""

    name: str
    source: str

    def make(self, output: Path) -> None:
        """Convert; layers that are in its cache are not read again."""

    def forget(self) -> None:
        """Empty its cache."""

    def forget_top(self) -> None:
        """Take the top layer out of its cache."""


@contextlib.contextmanager
def enroot(source: LayoutSource, blobs: list[Path], folder: Path) -> Iterator[Peer]:
    """The peer that this machine has, working in `folder`."""
    folder.mkdir()
    if shutil.which("enroot") is None:
        yield Steps(source, blobs, folder)
        return
    with PrivateRegistry(auth="") as registry:
        yield Imported(source, blobs, registry.address, folder)


class Imported:
    """`enroot import` itself."""

    def __init__(self, source: LayoutSource, blobs: list[Path], address: str, folder: Path) -> None:
        self._tool = Enroot.find()
        self._manifest = source.manifest()
        self._address = address
        self._places = Places.below(folder / "scratch", cache=folder / "cache")
        with RegistryClient(address) as client:
            for path, layer in zip(blobs, self._manifest.layers, strict=True):
                with path.open("rb") as blob:
                    client.push_blob(REPOSITORY, layer, blob)
            config = folder / "config.json"
            config.write_bytes(source.config().raw)
            with config.open("rb") as blob:
                client.push_blob(REPOSITORY, self._manifest.config, blob)
            digest = str(self._manifest.digest)
            client.put_manifest(REPOSITORY, digest, self._manifest.raw, self._manifest.media_type)
        unpacker = "pigz" if shutil.which("pigz") else "gzip"
        self.name = f"enroot import, {self._tool.version_text}, with {unpacker}"
        self.source = f"docker://{address}/{REPOSITORY}@{digest}"

    def forget(self) -> None:
        shutil.rmtree(self._places.cache)
        self._places.cache.mkdir(mode=0o700)

    def make(self, output: Path) -> None:
        output.unlink(missing_ok=True)
        (self._places.config / ".curlrc").unlink(missing_ok=True)
        self._tool.import_image(
            import_uri(self._address, REPOSITORY, str(self._manifest.digest)),
            output,
            places=self._places,
            architecture="amd64",
            plain_http=True,
            zstd_level=LEVEL,
            block_size=BLOCK,
        )

    def forget_top(self) -> None:
        (self._places.cache / self._manifest.layers[-1].digest.hex).unlink()


class Steps:
    """The tools that `enroot import` runs, in its order and with its defaults; nothing is downloaded."""

    name = "enroot's steps"

    def __init__(self, source: LayoutSource, blobs: list[Path], folder: Path) -> None:
        self.source = source.name
        self._blobs = blobs
        self._folder = folder
        self._cache = folder / "cache"
        self._cache.mkdir()

    def make(self, output: Path) -> None:
        output.unlink(missing_ok=True)
        missing = [number for number in range(len(self._blobs)) if not self._cached(number).exists()]
        names = "".join(f"{self._blobs[number]}\n{self._cached(number)}\n" for number in missing)
        unpack = "pigz" if shutil.which("pigz") else "gzip"
        # it checks each blob beside unpacking it, all of them at once
        step = f'sha256sum "$0" > /dev/null & {unpack} -dc "$0" | zstd -1 -q -f -o "$1"; wait'
        self._parallel(names, step, len(self._blobs))
        self._assemble(output)

    def forget(self) -> None:
        shutil.rmtree(self._cache)
        self._cache.mkdir()

    def forget_top(self) -> None:
        self._cached(len(self._blobs) - 1).unlink()

    def _assemble(self, output: Path) -> None:
        """Untar every cached layer, fix modes, whiteouts to overlay's, mount, mksquashfs, remove."""
        layers = [self._folder / f"layer-{number}" for number in range(len(self._blobs))]
        for layer in layers:
            layer.mkdir()
        names = "".join(f"{self._cached(number)}\n{layer}\n" for number, layer in enumerate(layers))
        self._parallel(names, 'zstd -dc "$0" | tar -C "$1" -pxf -', os.cpu_count() or 1)
        shell("chmod", "-R", "u+rX", *layers)
        for layer in layers:
            whiteouts(layer)
        root = self._folder / "overlay"
        root.mkdir()
        lower = ":".join(str(layer) for layer in reversed(layers))
        shell("mount", "-t", "overlay", "overlay", "-o", f"ro,lowerdir={lower}", root)
        try:
            shell("mksquashfs", root, output, *SQUASH, "-all-root", "-no-xattrs")
        finally:
            shell("umount", root)
        for path in (*layers, root):
            shutil.rmtree(path)

    def _cached(self, number: int) -> Path:
        return self._cache / f"{number}.zst"

    @staticmethod
    def _parallel(names: str, step: str, at_once: int) -> None:
        shell("xargs", "-P", at_once, "-n", "2", "sh", "-c", step, input=names)


def whiteouts(layer: Path) -> None:
    """AUFS whiteouts as a tar has them, to those that overlayfs knows."""
    for marker in list(layer.rglob(".wh.*")):
        marker.unlink()
        if marker.name == ".wh..wh..opq":
            os.setxattr(marker.parent, "trusted.overlay.opaque", b"y")
        else:
            os.mknod(marker.with_name(marker.name[4:]), 0o600 | 0o020000, os.makedev(0, 0))
