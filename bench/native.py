"""The native converter against its peers, each figure a ratio of two times measured in the same run.

    python -m bench.native_image /var/tmp/big-image
    python -m bench.native /var/tmp/big-image [--folder DIR] [--rounds 2] [--output FILE.json]

Needs root (overlay and loop mounts), mksquashfs, unsquashfs, zstd, and room for about four times the image.
Every tool gets the same zstd level and block size, and reads blobs or trees that are in the page cache. Of
several rounds the quickest counts; enroot's steps, which take minutes, run once. They are done with the tools
that enroot runs: gunzip and zstd of each layer, untar of each, overlay, mksquashfs; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.oci.layout import LayoutSource, open_layout
from pipeline.oci.platform import Platform
from pipeline.tools.mount import mounted

LEVEL = 3
BLOCK = 131072
SQUASH = ["-comp", "zstd", "-Xcompression-level", str(LEVEL), "-b", str(BLOCK)]
SQUASH += ["-noappend", "-no-progress", "-quiet"]

CONVERT = """
import json, resource, sys, time
from pathlib import Path
from pipeline.config import ConvertOptions
from pipeline.oci.layout import open_layout
from pipeline.oci.platform import Platform
from pipeline.stages.converters.native import convert_native
image, output, cache = map(Path, sys.argv[1:])
started, cpu = time.monotonic(), time.process_time()
source = open_layout(image, platform=Platform(os="linux", architecture="amd64"))
done = convert_native(source, ConvertOptions(), output=output, cache=cache)
print(json.dumps({
    "wall_s": time.monotonic() - started, "cpu_s": time.process_time() - cpu, "inodes": len(done.tree),
    "size": done.size, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
}))
"""


def shell(*argv: object, **more: Any) -> str:
    command = [str(word) for word in argv]
    return subprocess.run(command, check=True, capture_output=True, text=True, **more).stdout


def timed(work: Callable[[], object]) -> float:
    return measured(work)["wall_s"]


def measured(work: Callable[[], object]) -> dict[str, float]:
    """Wall and CPU seconds of work in other processes; on a busy machine the second is the fairer one."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    work()
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"wall_s": wall, "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def added(*steps: dict[str, float]) -> dict[str, float]:
    return {key: sum(step[key] for step in steps) for key in ("wall_s", "cpu_s")}


def convert(image: Path, output: Path, cache: Path) -> dict[str, Any]:
    """One native conversion in a process of its own; its wall time is inside, without Python's start."""
    output.unlink(missing_ok=True)
    result: dict[str, Any] = json.loads(
        shell(sys.executable, "-c", CONVERT, image, output, cache).splitlines()[-1]
    )
    return result


class Enroot:
    """What `enroot import` does with an image's layers, by the tools that it runs."""

    def __init__(self, blobs: list[Path], folder: Path) -> None:
        self._blobs = blobs
        self._folder = folder
        self._cache = folder / "enroot-cache"
        self._cache.mkdir()

    def recompress(self, numbers: list[int]) -> None:
        """Into the cache, as many at once as there are cores."""
        names = "".join(f"{self._blobs[number]}\n{self._cached(number)}\n" for number in numbers)
        step = 'gzip -dc "$0" | zstd -q -f -o "$1"'
        self._parallel(names, step)

    def assemble(self, output: Path) -> None:
        """Untar every cached layer, whiteouts to overlay's, mount, mksquashfs, unmount."""
        layers = [self._folder / f"layer-{number}" for number in range(len(self._blobs))]
        for layer in layers:
            layer.mkdir()
        names = "".join(f"{self._cached(number)}\n{layer}\n" for number, layer in enumerate(layers))
        self._parallel(names, 'zstd -dc "$0" | tar -C "$1" --numeric-owner -xf -')
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

    def clean(self) -> None:
        for path in self._folder.glob("layer-*"):
            shutil.rmtree(path)
        shutil.rmtree(self._folder / "overlay", ignore_errors=True)

    def _cached(self, number: int) -> Path:
        return self._cache / f"{number}.zst"

    @staticmethod
    def _parallel(names: str, step: str) -> None:
        shell("xargs", "-P", os.cpu_count(), "-n", "2", "sh", "-c", step, input=names)


def whiteouts(layer: Path) -> None:
    """AUFS whiteouts as a tar has them, to those that overlayfs knows."""
    for marker in list(layer.rglob(".wh.*")):
        marker.unlink()
        if marker.name == ".wh..wh..opq":
            os.setxattr(marker.parent, "trusted.overlay.opaque", b"y")
        else:
            os.mknod(marker.with_name(marker.name[4:]), 0o600 | 0o020000, os.makedev(0, 0))


def copy_and_hash(source: Path, target: Path) -> None:
    """What publishing by hand costs: cp, fsync, one sha256."""
    target.unlink(missing_ok=True)
    shell("cp", "--reflink=never", source, target)
    with target.open("rb") as copied:
        os.fsync(copied.fileno())
        digest = hashlib.sha256()
        while piece := copied.read(1 << 20):
            digest.update(piece)


def into_page_cache(file: Path) -> None:
    with file.open("rb") as stream:
        while stream.read(1 << 20):
            pass


def read_tree(root: Path) -> None:
    shell("sh", "-c", 'tar -C "$0" -cf - . | cat > /dev/null', root)


def reading(file: Path, folder: Path) -> dict[str, float]:
    """Seconds of find, of reading everything, and of one import, each on a fresh mount."""
    packages = "opt/packages"
    program = "import sys; sys.path.insert(0, sys.argv[1]); import torch"
    ways: dict[str, Callable[[Path], object]] = {
        "find_s": lambda root: shell("find", root, "-printf", ""),
        "read_all_s": read_tree,
        "import_s": lambda root: shell(sys.executable, "-S", "-B", "-c", program, root / packages),
    }
    found = {}
    for name, way in ways.items():
        folder.mkdir(exist_ok=True)
        with mounted(file, folder, kind="kernel") as mount:
            if name != "import_s" or (mount.folder / packages / "torch").is_dir():
                found[name] = timed(lambda way=way, root=mount.folder: way(root))  # type: ignore[misc]
    return found


@contextlib.contextmanager
def cloning_disk(folder: Path, size: int) -> Iterator[Path | None]:
    """An XFS file system in a file, mounted; None where it cannot be made."""
    if shutil.which("mkfs.xfs") is None:
        yield None
        return
    image, mount = folder / "xfs.img", folder / "xfs"
    shell("truncate", "-s", size, image)
    shell("mkfs.xfs", "-q", "-m", "reflink=1", image)
    mount.mkdir()
    shell("mount", "-o", "loop", image, mount)
    try:
        yield mount
    finally:
        shell("umount", mount)
        image.unlink()


def used(folder: Path) -> int:
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def on_a_cloning_disk(image: Path, cache: Path, folder: Path, size: int) -> dict[str, Any]:
    """A stitch where packs and image share their blocks: time, and how much the disk grew."""
    with cloning_disk(folder, size * 3 + (1 << 30)) as disk:
        if disk is None:
            return {}
        shutil.copytree(cache, disk / "cache")
        os.sync()
        before = used(disk)
        done = convert(image, disk / "out.sqsh", disk / "cache")
        os.sync()
        return {"wall_s": done["wall_s"], "grew_bytes": used(disk) - before, "size": done["size"]}


def best(rounds: int, prepare: Callable[[], object], work: Callable[[], Any]) -> Any:
    """The quickest of several rounds, by its own wall time where it tells one."""
    results = []
    for _ in range(rounds):
        prepare()
        told: list[Any] = []
        took = measured(lambda told=told: told.append(work()))  # type: ignore[misc]
        results.append(told[0] if isinstance(told[0], dict) else took)
    return min(results, key=lambda result: result["wall_s"])


class Bench:
    """All measurements, in an order in which each finds what it needs."""

    def __init__(self, image: Path, folder: Path, rounds: int) -> None:
        self._image = image
        self._folder = folder
        self._rounds = rounds
        self._source: LayoutSource = open_layout(image, platform=Platform(os="linux", architecture="amd64"))
        layers = self._source.manifest().layers
        self._blobs = [image / "blobs" / "sha256" / layer.digest.hex for layer in layers]
        self._native = folder / "native.sqsh"
        self._cache = folder / "cache"
        self.found: dict[str, Any] = {"image": json.loads((image / "image.json").read_text())}

    def run(self) -> dict[str, Any]:
        found = self.found
        for blob in self._blobs:
            into_page_cache(blob)
        found["cold"] = best(self._rounds, self._forget, self._convert)
        found["load_1min"] = os.getloadavg()[0]
        self._enroot()
        found["rebuild"] = best(self._rounds, self._forget_top, self._convert)
        found["warm"] = best(self._rounds, lambda: None, self._convert)
        found["copy_and_hash"] = best(
            self._rounds, lambda: None, lambda: copy_and_hash(self._native, self._folder / "copy")
        )
        (self._folder / "copy").unlink()
        self._mksquashfs()
        found["reading"] = {"native": self._reading(self._native), "mksquashfs": self._reading(self._peer)}
        found["cloning"] = on_a_cloning_disk(
            self._image, self._cache, self._folder, self._native.stat().st_size
        )
        return found

    def _convert(self) -> dict[str, Any]:
        return convert(self._image, self._native, self._cache)

    def _forget(self) -> None:
        shutil.rmtree(self._cache, ignore_errors=True)

    def _forget_top(self) -> None:
        """As if the top layer were new: its pack is the one that was written for it."""
        from pipeline.squashfs.cache import pack_key
        from pipeline.squashfs.codecs import Codec
        from pipeline.stages.converters.native import pack_cache

        key = pack_key(str(self._source.config().diff_ids[-1]), Codec(level=LEVEL), BLOCK)
        (pack_cache(self._cache).folder / f"{key}.pack").unlink()

    def _enroot(self) -> None:
        """Cold: all steps. Cached: the top layer's recompression, and the steps that follow for all."""
        folder = self._folder / "enroot"
        folder.mkdir()
        enroot = Enroot(self._blobs, folder)
        output = folder / "out.sqsh"
        everything = list(range(len(self._blobs)))
        recompress = measured(lambda: enroot.recompress(everything))
        assemble = measured(lambda: enroot.assemble(output))
        enroot.clean()
        top = measured(lambda: enroot.recompress(everything[-1:]))
        again = measured(lambda: enroot.assemble(output))
        self.found["enroot_cold"] = {**added(recompress, assemble), "size": output.stat().st_size}
        self.found["enroot_rebuild"] = added(top, again)
        shutil.rmtree(folder)

    def _mksquashfs(self) -> None:
        """mksquashfs alone, on the tree of our own file, unpacked and read once."""
        tree = self._folder / "tree"
        shell("unsquashfs", "-q", "-n", "-no-xattrs", "-d", tree, self._native)
        self._peer = self._folder / "mksquashfs.sqsh"
        self.found["mksquashfs"] = best(
            self._rounds,
            lambda: (self._peer.unlink(missing_ok=True), read_tree(tree)),
            lambda: shell("mksquashfs", tree, self._peer, *SQUASH),
        )
        self.found["mksquashfs"]["size"] = self._peer.stat().st_size
        shutil.rmtree(tree)

    def _reading(self, file: Path) -> dict[str, float]:
        into_page_cache(file)
        rounds = [reading(file, self._folder / "mount") for _ in range(self._rounds)]
        return {name: min(result[name] for result in rounds) for name in rounds[0]}


def ratios(found: dict[str, Any]) -> list[tuple[str, float, str]]:
    """What, the ratio, and the goal for it."""
    cold, rebuild = found["cold"], found["rebuild"]
    rows = [
        ("cold, enroot's steps / native", found["enroot_cold"]["wall_s"] / cold["wall_s"], ">= 4"),
        ("cold, mksquashfs alone / native", found["mksquashfs"]["wall_s"] / cold["wall_s"], ">= 0.7"),
        ("rebuild, enroot's steps / native", found["enroot_rebuild"]["wall_s"] / rebuild["wall_s"], ">= 10"),
        ("rebuild / cp, fsync and sha256", rebuild["wall_s"] / found["copy_and_hash"]["wall_s"], "<= 1.2"),
        ("size / mksquashfs", found["native_size"] / found["mksquashfs"]["size"], "<= 1.01"),
        ("peak memory / allowed", cold["peak_bytes"] / (300e6 + 1000 * cold["inodes"]), "<= 1"),
    ]
    for name, ours in found["reading"]["native"].items():
        rows.append(
            (f"{name[:-2]}, native / mksquashfs", ours / found["reading"]["mksquashfs"][name], "<= 1")
        )
    if found["cloning"]:
        cloning = found["cloning"]
        rows.append(("disk used by a clone / size", cloning["grew_bytes"] / cloning["size"], "about 0"))
    return rows


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("image", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="sqshpipe-bench-") as name:
        found = Bench(given.image, Path(name), given.rounds).run()
    found["native_size"] = found["cold"]["size"]
    found["machine"] = {
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "mksquashfs": shell("sh", "-c", "mksquashfs -version | head -1").strip(),
    }
    found["ratios"] = {what: round(ratio, 3) for what, ratio, _ in ratios(found)}
    found["cpu_ratios"] = {
        "cold, enroot's steps / native": found["enroot_cold"]["cpu_s"] / found["cold"]["cpu_s"],
        "cold, mksquashfs alone / native": found["mksquashfs"]["cpu_s"] / found["cold"]["cpu_s"],
        "rebuild, enroot's steps / native": found["enroot_rebuild"]["cpu_s"] / found["rebuild"]["cpu_s"],
    }
    for what, ratio, goal in ratios(found):
        print(f"{what:<36} {ratio:8.2f}   goal {goal}")
    text = json.dumps(found, indent=2) + "\n"
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
