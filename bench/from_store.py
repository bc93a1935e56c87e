"""A machine without packs and a store that has the version before: what the next version costs there.

    python -m bench.native_image /var/tmp/big-image
    python -m bench.from_store /var/tmp/big-image [--folder DIR] [--rounds 3] [--output FILE.json]

The next version has another top layer (30 MB). Both images come from a registry on loopback. From the digest
to the published release, in turn: with the packs of all other layers at hand; with an empty cache, and the
release before not in the page cache; with an empty cache and a store without releases; and real
`enroot import` with an empty cache, where it is installed. Needs root, and room for four times the image.
On XFS, where packs and releases share their blocks, also how much the disk grows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.native import cloning_disk, used
from bench.native_enroot import Imported
from bench.native_image import MEDIA, put, top, write_layer
from bench.shell import measured, shell
from bench.verdict import release
from demo.registry import PrivateRegistry
from pipeline.oci.layout import open_layout
from pipeline.oci.platform import Platform

PLATFORM = Platform(os="linux", architecture="amd64")


def with_another_layer(image: Path, folder: Path, number: int, plain: Iterator[bytes]) -> Path:
    """The layout of the next version, with the tar `plain` as layer `number`; the rest are the same files."""
    shutil.copytree(image, folder, copy_function=os.link)
    (folder / "index.json").unlink()
    shutil.copy(image / "index.json", folder)
    source = open_layout(image, platform=PLATFORM)
    config, manifest = json.loads(source.config().raw), json.loads(source.manifest().raw)
    layer = write_layer(folder, "new", plain)
    config["rootfs"]["diff_ids"][number] = f"sha256:{layer.diff_id}"
    manifest["config"] = put(folder, config, f"{MEDIA}.config.v1+json")
    manifest["layers"][number] |= {"digest": f"sha256:{layer.digest}", "size": layer.stored}
    index = {"schemaVersion": 2, "manifests": [put(folder, manifest, f"{MEDIA}.manifest.v1+json")]}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@contextlib.contextmanager
def registry(image: Path, folder: Path) -> Iterator[Imported]:
    """A registry that has the image, and the peer that imports it from there."""
    source = open_layout(image, platform=PLATFORM)
    blobs = [image / "blobs" / "sha256" / layer.digest.hex for layer in source.manifest().layers]
    folder.mkdir()
    with PrivateRegistry(auth="") as running:
        yield Imported(source, blobs, running.address, folder)


def forget(file: Path) -> None:
    """Leave nothing of a file in the page cache."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Bench:
    """The rounds of each way; every round begins with a store that has the version before alone."""

    def __init__(self, image: Path, work: Path) -> None:
        self._work = work
        self._old, self._cache, self._first = image, work / "cache", work / "store"
        self.new = with_another_layer(image, work / "next", -1, iter((top(5),)))
        self.first = release(f"oci:{image}", self._cache, self._first)

    def _store(self) -> Path:
        """A store with the version before; its file has the names of every other such store."""
        root = self._work / "round"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(self._first, root, copy_function=os.link, symlinks=True)
        return root

    def warm(self, source: str) -> dict[str, Any]:
        cache = self._work / "warm"
        shutil.rmtree(cache, ignore_errors=True)
        shutil.copytree(self._cache, cache, copy_function=os.link)
        return release(source, cache, self._store(), version="v1.1")

    def from_store(self, source: str) -> dict[str, Any]:
        root, cache = self._store(), self._work / "empty"
        shutil.rmtree(cache, ignore_errors=True)
        forget(Path(self.first["path"]))
        return release(source, cache, root, version="v1.1")

    def without(self, source: str) -> dict[str, Any]:
        root, cache = self._work / "other", self._work / "empty"
        for folder in (root, cache):
            shutil.rmtree(folder, ignore_errors=True)
        found = release(source, cache, root, version="v1.1")
        shutil.rmtree(root)
        return found

    def growth(self, source: str) -> dict[str, Any]:
        """How much a disk with XFS grows by the next version, made out of the one before there, and how long
        that takes: blocks are cloned, not copied.
        """
        size = int(self.first["size"])
        with cloning_disk(self._work, 2 * size + (1 << 30)) as disk:
            if disk is None:
                return {}
            shell("cp", "-a", self._first, disk / "store")
            os.sync()
            before = used(disk)
            forget(disk / "store" / Path(self.first["path"]).relative_to(self._first))
            forget(disk.with_suffix(".img"))  # which the loop device reads through the page cache
            made = release(source, self._work / "empty-too", disk / "store", version="v1.1")
            os.sync()
            return {"grew_bytes": used(disk) - before, **made}


def measure(image: Path, work: Path, rounds: int) -> dict[str, Any]:
    """All rounds, in turn."""
    bench = Bench(image, work)
    found: dict[str, Any] = {"processors": len(os.sched_getaffinity(0)), "warm": [], "from_store": []}
    with registry(bench.new, work / "registry") as peer:
        found["changed_layer"] = open_layout(bench.new, platform=PLATFORM).manifest().layers[-1].size
        for _ in range(rounds):
            found["warm"].append(bench.warm(peer.source))
            found["from_store"].append(bench.from_store(peer.source))
        found["without"] = bench.without(peer.source)
        found["xfs"] = bench.growth(peer.source)
        peer.forget()
        found["enroot"] = {"name": peer.name, **measured(lambda: peer.make(work / "enroot.sqsh"))}
    return found


def ratios(found: dict[str, Any]) -> list[tuple[str, float, str]]:
    """What, the figure, and the goal for it."""

    def median(way: str, what: str = "wall_s") -> float:
        return statistics.median(each[what] for each in found[way])

    stored = median("from_store")
    extra = median("from_store", "received_bytes") / found["changed_layer"]
    rows = [
        ("empty cache, the version before in the store / packs at hand", stored / median("warm"), "<= 1.5"),
        ("the same, bytes over the network / the changed layer", extra, "about 1"),
        ("enroot import / the same", found["enroot"]["wall_s"] / stored, ">= 10"),
        ("empty cache and empty store / the same", found["without"]["wall_s"] / stored, ""),
    ]
    if found["xfs"]:
        grew = (found["xfs"]["grew_bytes"] - found["changed_layer"]) / found["xfs"]["size"]
        rows.append(("XFS: growth beyond the changed layer / size", grew, "<= 0.01"))
        rows.append(
            (
                "enroot import / the same on XFS in a loop file",
                found["enroot"]["wall_s"] / found["xfs"]["wall_s"],
                "",
            )
        )
    return rows


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("image", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="sqshpipe-bench-") as name:
        found = measure(given.image, Path(name), given.rounds)
    for what, figure, goal in ratios(found):
        print(f"{what:<62} {figure:8.2f}   goal {goal}")
    if given.output:
        rows = [[what, round(figure, 3), goal] for what, figure, goal in ratios(found)]
        given.output.write_text(json.dumps({**found, "ratios": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
