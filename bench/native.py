"""The native converter against its peers, each figure a ratio of two times measured in the same run.

    python -m bench.native_image /var/tmp/big-image
    python -m bench.native /var/tmp/big-image [--folder DIR] [--rounds 2] [--output FILE.json]

Needs root (overlay and loop mounts), mksquashfs, unsquashfs, and room for about four times the image. Every
tool gets the same zstd level and block size, and reads blobs or trees that are in the page cache. Peers take
turns with what they are compared with; of several rounds the quickest counts, of reading the median. enroot,
which takes minutes, runs twice: `enroot import` itself where it is installed, from a registry on loopback, as
does the conversion that it is compared with; else the tools that it runs, in its order (see native_enroot).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.native_enroot import BLOCK, LEVEL, SQUASH, enroot
from bench.shell import measured, shell
from pipeline.oci.layout import LayoutSource, open_layout
from pipeline.oci.platform import Platform
from pipeline.system.mount import mounted

READINGS = 5  # rounds of reading, at least

CONVERT = """
import json, resource, sys, time
from pathlib import Path
from pipeline.config.types import ConvertOptions
from pipeline.oci.platform import Platform
from pipeline.progress import NO_TASK
from pipeline.convert.native import convert_native
from pipeline.convert.sources import opened_source
output, cache = map(Path, sys.argv[2:])
platform = Platform(os="linux", architecture="amd64")
started, cpu = time.monotonic(), time.process_time()
with opened_source(sys.argv[1], platform, scratch=cache, task=NO_TASK) as source:
    done = convert_native(source, ConvertOptions(), output=output, cache=cache)
print(json.dumps({
    "wall_s": time.monotonic() - started, "cpu_s": time.process_time() - cpu, "inodes": len(done.tree),
    "size": done.size, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
}))
"""


def timed(work: Callable[[], object]) -> float:
    return measured(work)["wall_s"]


def convert(image: Path | str, output: Path, cache: Path) -> dict[str, Any]:
    """One native conversion of a layout, or of the source of that name, in a process of its own.

    Its wall time is without Python's start.
    """
    output.unlink(missing_ok=True)
    source = image if isinstance(image, str) else f"oci:{image}"
    result: dict[str, Any] = json.loads(
        shell(sys.executable, "-c", CONVERT, source, output, cache).splitlines()[-1]
    )
    return result


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


def in_turn(rounds: int, *ways: tuple[Callable[[], object], Callable[[], Any]]) -> list[Any]:
    """The quickest of several rounds of each way, by its own wall time where it reports one. A way is what is
    not measured and what is.
    """
    results: list[list[Any]] = [[] for _ in ways]
    for _ in range(rounds):
        for (prepare, work), kept in zip(ways, results, strict=True):
            prepare()
            outcome: list[Any] = []
            took = measured(lambda work=work, outcome=outcome: outcome.append(work()))  # type: ignore[misc]
            kept.append(outcome[0] if isinstance(outcome[0], dict) else took)
    return [min(kept, key=lambda result: result["wall_s"]) for kept in results]


class Bench:
    """All measurements, in an order in which each finds what it needs."""

    def __init__(
        self, image: Path, folder: Path, rounds: int, outcome: Callable[[dict[str, Any]], None]
    ) -> None:
        self._outcome = outcome  # what was found so far: a run that is cut short leaves its rows
        self._image = image
        self._folder = folder
        self._rounds = rounds
        self._source: LayoutSource = open_layout(image, platform=Platform(os="linux", architecture="amd64"))
        layers = self._source.manifest().layers
        self._blobs = [image / "blobs" / "sha256" / layer.digest.hex for layer in layers]
        self._native = folder / "native.sqsh"
        self._peer = folder / "mksquashfs.sqsh"
        self._cache = folder / "cache"
        self.found: dict[str, Any] = {"image": json.loads((image / "image.json").read_text())}

    def run(self) -> dict[str, Any]:
        found = self.found
        for blob in self._blobs:
            into_page_cache(blob)
        found["cold"], found["mksquashfs"] = self._cold_and_mksquashfs()
        found["native_size"] = self._native.stat().st_size
        self._outcome(found)
        self._rebuild()
        self._outcome(found)
        self._enroot()
        self._outcome(found)
        found["reading"] = self._reading()
        found["cloning"] = on_a_cloning_disk(
            self._image, self._cache, self._folder, self._native.stat().st_size
        )
        self._outcome(found)
        return found

    def run_rebuild(self) -> dict[str, Any]:
        """The rebuild and what it is compared with alone, on packs that are made first."""
        self._convert()
        self._rebuild()
        self._outcome(self.found)
        return self.found

    def _rebuild(self) -> None:
        found = self.found
        found["rebuild"], found["copy_and_hash"] = in_turn(
            self._rounds,
            (self._forget_top, self._convert),
            (lambda: None, lambda: copy_and_hash(self._native, self._folder / "copy")),
        )
        (self._folder / "copy").unlink()
        found["warm"] = self._convert()
        found["load_1min"] = os.getloadavg()[0]

    def _cold_and_mksquashfs(self) -> list[Any]:
        """mksquashfs gets the tree of our own file, unpacked, and read once before each round."""
        self._convert()
        tree = self._folder / "tree"
        shell("unsquashfs", "-q", "-n", "-no-xattrs", "-d", tree, self._native)
        results = in_turn(
            self._rounds,
            (self._forget, self._convert),
            (
                lambda: (self._peer.unlink(missing_ok=True), read_tree(tree)),
                lambda: self._mksquashfs(tree),
            ),
        )
        results[1]["size"] = self._peer.stat().st_size
        shutil.rmtree(tree)
        return results

    def _convert(self) -> dict[str, Any]:
        return convert(self._image, self._native, self._cache)

    def _forget(self) -> None:
        shutil.rmtree(self._cache, ignore_errors=True)

    def _forget_top(self) -> None:
        """As if the top layer were new: its pack is the one that was written for it."""
        from pipeline.convert.packing import pack_cache
        from pipeline.squashfs.cache import pack_key
        from pipeline.squashfs.codecs import Codec

        key = pack_key(str(self._source.config().diff_ids[-1]), Codec(level=LEVEL), BLOCK)
        (pack_cache(self._cache).folder / f"{key}.pack").unlink()

    def _enroot(self) -> None:
        """Cold: all layers, twice in turn with ours. Cached: with the top layer alone missing, once."""
        found, folder = self.found, self._folder / "enroot"
        cache = self._folder / "registry-cache"

        def forget_ours() -> None:
            shutil.rmtree(cache, ignore_errors=True)
            cache.mkdir()

        with enroot(self._source, self._blobs, folder) as peer:
            found["enroot"] = peer.name
            found["enroot_cold"], found["cold_registry"] = in_turn(
                2,
                (peer.forget, lambda: peer.make(folder / "out.sqsh")),
                (forget_ours, lambda: convert(peer.source, self._folder / "registry.sqsh", cache)),
            )
            found["enroot_cold"]["size"] = (folder / "out.sqsh").stat().st_size
            peer.forget_top()
            found["enroot_rebuild"] = measured(lambda: peer.make(folder / "again.sqsh"))
        shutil.rmtree(cache)
        shutil.rmtree(folder)

    def _reading(self) -> dict[str, dict[str, float]]:
        """Medians, since what is read takes less time than the machine's moods."""
        files = {"native": self._native, "mksquashfs": self._peer}
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in files}
        for number in range(max(self._rounds, READINGS)):
            for name, file in list(files.items())[:: -1 if number % 2 else 1]:
                into_page_cache(file)
                rounds[name].append(reading(file, self._folder / "mount"))
        return {
            name: {what: statistics.median(result[what] for result in results) for what in results[0]}
            for name, results in rounds.items()
        }

    def _mksquashfs(self, tree: Path) -> dict[str, float]:
        """The run, and beside it how long its file then takes to be on the disk."""
        took = measured(lambda: shell("mksquashfs", tree, self._peer, *SQUASH))
        with self._peer.open("rb") as file:
            return {**took, "fsync_s": timed(lambda: os.fsync(file.fileno()))}


def ratios(found: dict[str, Any]) -> list[tuple[str, float, str]]:
    """What, the ratio, and the goal for it."""
    cold, peer = found["cold"], found["mksquashfs"]
    rows = [
        ("cold, mksquashfs alone / native", peer["wall_s"] / cold["wall_s"], ">= 0.7"),
        ("the same, CPU seconds", peer["cpu_s"] / cold["cpu_s"], ""),
        ("both until all is on the disk", (peer["wall_s"] + peer.get("fsync_s", 0)) / cold["wall_s"], ""),
        ("size / mksquashfs", found["native_size"] / peer["size"], "<= 1.01"),
        ("peak memory / allowed", cold["peak_bytes"] / (300e6 + 1000 * cold["inodes"]), "<= 1"),
    ]
    rebuild = found.get("rebuild")
    if rebuild:
        copied = found["copy_and_hash"]
        rows.append(("rebuild / cp, fsync and sha256", rebuild["wall_s"] / copied["wall_s"], "<= 1.2"))
    if "enroot_cold" in found:
        imported = found.get("cold_registry", cold)
        rows.append(("cold, enroot / native", found["enroot_cold"]["wall_s"] / imported["wall_s"], ">= 4"))
        rows.append(("the same, CPU seconds", found["enroot_cold"]["cpu_s"] / imported["cpu_s"], ""))
    if rebuild and "enroot_rebuild" in found:
        again = found["enroot_rebuild"]
        rows.append(("rebuild, enroot / native", again["wall_s"] / rebuild["wall_s"], ">= 10"))
        rows.append(("the same, CPU seconds", again["cpu_s"] / rebuild["cpu_s"], ""))
    for name, ours in found.get("reading", {}).get("native", {}).items():
        rows.append(
            (f"{name[:-2]}, native / mksquashfs", ours / found["reading"]["mksquashfs"][name], "<= 1")
        )
    if found.get("cloning"):
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
    parser.add_argument("--rebuild", action="store_true", help="measure that again, the rest is in --output")
    given = parser.parse_args()
    if given.rebuild and given.output is None:
        parser.error("--rebuild goes with --output")
    before = json.loads(given.output.read_text()) if given.rebuild else {}

    def outcome(found: dict[str, Any]) -> None:
        if given.output:
            given.output.parent.mkdir(parents=True, exist_ok=True)
            given.output.write_text(json.dumps(with_ratios({**before, **found}), indent=2) + "\n")

    with tempfile.TemporaryDirectory(dir=given.folder, prefix="sqshpipe-bench-") as name:
        bench = Bench(given.image, Path(name), given.rounds, outcome)
        found = {**before, **(bench.run_rebuild() if given.rebuild else bench.run())}
    for what, ratio, goal in ratios(found):
        print(f"{what:<36} {ratio:8.2f}   {goal and 'goal ' + goal}")


def with_ratios(found: dict[str, Any]) -> dict[str, Any]:
    """What was measured, on what, and what follows."""
    machine = {
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "mksquashfs": shell("sh", "-c", "mksquashfs -version | head -1").strip(),
    }
    rows = [[what, round(ratio, 3), goal] for what, ratio, goal in ratios(found)]
    return {**found, "machine": machine, "ratios": rows}


if __name__ == "__main__":
    main()
