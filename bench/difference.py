"""What the next version costs where the one before is: on a disk, on a node, in a bucket, on a slow store.

    python -m bench.difference [--megabytes 60 | --image FOLDER] [--rounds 3] [--json FILE]

Three next versions: 30 MB of new files are the top layer, or come into a middle layer or the base, of which
then all bytes count as changed. FOLDER is what `python -m bench.native_image FOLDER` made. Changed are the
bytes of layer packs that the version before lacks, and all that is in no pack.

- An XFS disk: how much it grows by a version, made with an empty cache beside the one before.
- `node prewarm --local` with a copy of the one before on the node: bytes read from the store.
- `store sync` to S3 (moto on loopback) with the one before there: bytes sent.
- A store where each read of 128 KiB takes 2 ms: a release with an empty cache, and with all packs but the
  changed one at hand, in turn.

Needs root, mkfs.xfs, FUSE, room for four times the image, and memory for four times the .sqsh, for moto.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from bench import images, measuring
from bench.from_store import PLATFORM, forget, with_another_layer
from bench.native import cloning_disk, used
from bench.native_image import top
from bench.node import slow_store
from bench.verdict import release
from pipeline.aws.s3 import S3Bucket
from pipeline.node.prewarm_on_node import onto_disk
from pipeline.oci.layout import open_layout
from pipeline.store.layout import RANGES
from pipeline.store.record import Release
from pipeline.store.sharing import ranges_of
from pipeline.store.store import Store
from pipeline.store.sync import sync
from tests.support.servers import aws

BUCKET_MARGIN = 16 << 20  # bytes that a sync may send beyond what changed


def small_image(folder: Path, megabytes: float) -> Path:
    """A layout of real content with one image."""
    images.make(folder, megabytes=megabytes)
    index = json.loads((folder / "index.json").read_text())
    *_, last = index["manifests"]
    del last["annotations"]
    (folder / "index.json").write_text(json.dumps({**index, "manifests": [last]}))
    return folder


def with_more(blob: Path) -> Iterator[bytes]:
    """The tar of a layer with 30 MB of new files before its own."""
    new = top(5).rstrip(b"\0")
    yield new + bytes(-len(new) % 512)
    with gzip.open(blob) as plain:
        while piece := plain.read(1 << 20):
            yield piece


def next_versions(image: Path, work: Path) -> dict[str, Path]:
    """A layout for each changed layer."""
    layers = open_layout(image, platform=PLATFORM).manifest().layers
    blobs = [image / "blobs" / "sha256" / layer.digest.hex for layer in layers]
    middle = len(layers) // 2
    return {
        "top": with_another_layer(image, work / "top", len(layers) - 1, iter((top(5),))),
        "middle": with_another_layer(image, work / "middle", middle, with_more(blobs[middle])),
        "base": with_another_layer(image, work / "base", 0, with_more(blobs[0])),
    }


def changed(store: Store, new: Release) -> int:
    """Bytes of the new release that are in no pack, or in one that the version before lacks."""
    wanted, held = ranges_of(store.layout, new), store.resolve("bench:v1.0")
    assert wanted is not None
    common = {number for number, (key, _) in enumerate(wanted.packs) if key in held.packs}
    return wanted.size - sum(item.length for item in wanted.ranges if item.layer in common)


def on_a_cloning_disk(versions: dict[str, Path], work: Path, disk: Path) -> dict[str, dict[str, int]]:
    """Makes the releases; how much the disk grows by each."""
    found = {}
    for name, layout in versions.items():
        shutil.rmtree(work / "empty", ignore_errors=True)
        os.sync()
        before = used(disk)
        made = release(f"oci:{layout}", work / "empty", disk / "store", version=name)
        os.sync()
        new = Store(disk / "store").resolve(f"bench:{name}")
        facts = {"size": int(made["size"]), "changed": changed(Store(disk / "store"), new)}
        found[name] = {**facts, "grew": used(disk) - before}
    return found


def prewarmed(store: Store, folder: Path) -> dict[str, int]:
    """Bytes read from the store by a node that has a copy of the version before."""

    def warm(version: str) -> tuple[Path, int]:
        one = store.resolve(f"bench:{version}")
        ranges = store.layout.attachments("bench", version, one.platform) / RANGES
        done = onto_disk(one.path, one.sha256, folder, state=None, ranges=ranges)
        return done.path, done.read

    warm("v1.0")
    found = {}
    for name in ("top", "middle", "base"):
        copy, found[name] = warm(name)
        for left in folder.glob(f"{copy.stem}*"):  # the next one finds the version before alone
            left.unlink()
    return found


def sent_to_s3(store: Store) -> dict[str, int]:
    """Bytes that a sync sends to a bucket with the version before."""
    with aws.moto_server() as address, pytest.MonkeyPatch.context() as patch:
        aws.use(patch, address)
        boto3.client("s3").create_bucket(Bucket="bench")
        bucket = S3Bucket("s3://bench/store")
        sync(store, bucket, names=["bench:v1.0"])
        return {
            name: sync(store, bucket, names=[f"bench:{name}"]).bytes_copied
            for name in ("top", "middle", "base")
        }


class SlowStore:
    """Releases of the version with the new top into a store that answers late."""

    def __init__(self, first: Path, layout: Path, work: Path) -> None:
        self._first, self._layout, self._work = first, layout, work
        self._packs = work / "packs"
        release(f"oci:{layout}", self._packs, work / "other")  # packs of all its layers
        key = Store(work / "other").resolve("bench:v1.0").packs[-1]
        for pack in self._packs.rglob(f"{key}*"):
            pack.unlink()
        shutil.rmtree(work / "other")

    def seconds(self, *, packs: bool) -> float:
        """Of one release; nothing of the store is in the page cache."""
        backing, cache = self._work / "backing", self._work / "round"
        for folder in (backing, cache):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._first, backing / "store", copy_function=os.link, symlinks=True)
        if packs:
            shutil.copytree(self._packs, cache, copy_function=os.link)
        forget(Store(backing / "store").resolve("bench:v1.0").path)
        with slow_store(backing) as slow:
            made = release(f"oci:{self._layout}", cache, slow / "store", version="v1.1")
        backing.with_name("slow").rmdir()
        return float(made["wall_s"])


def measure(image: Path, work: Path, rounds: int) -> dict[str, Any]:
    versions = next_versions(image, work)
    first = release(f"oci:{image}", work / "cache", work / "store")
    found: dict[str, Any] = {"rounds": rounds, "size": first["size"], "packs_s": [], "empty_s": []}
    slow = SlowStore(work / "store", versions["top"], work)
    for _ in range(rounds):
        found["packs_s"].append(slow.seconds(packs=True))
        found["empty_s"].append(slow.seconds(packs=False))
    for name in ("cache", "packs", "round", "backing"):
        shutil.rmtree(work / name)
    with cloning_disk(work, 3 * int(first["size"]) + (2 << 30)) as disk:
        if disk is None:
            raise SystemExit("mkfs.xfs is not installed")
        shutil.copytree(work / "store", disk / "store", symlinks=True)
        shutil.rmtree(work / "store")
        found["versions"] = on_a_cloning_disk(versions, work, disk)
        (disk / "node").mkdir(mode=0o755)
        store = Store(disk / "store")
        for what, figures in (
            ("read", prewarmed(store, disk / "node")),
            ("sent", sent_to_s3(store)),
        ):
            for name, value in figures.items():
                found["versions"][name][what] = value
    return found


def ratios(found: dict[str, Any]) -> list[tuple[str, float, str]]:
    """What, the figure, and the goal for it."""
    slow = statistics.median(found["empty_s"]) / statistics.median(found["packs_s"])
    rows = [("2 ms a read: empty cache, the version before in the store / packs at hand", slow, "<= 1.5")]
    for what, words in (("grew", "XFS: growth"), ("read", "prewarm: bytes read")):
        for name, one in found["versions"].items():
            beyond = (one[what] - one["changed"]) / one["size"]
            rows.append((f"{words} beyond what changed / size, {name} layer", beyond, "<= 0.01"))
    for name, one in found["versions"].items():
        beyond = (one["sent"] - one["changed"]) / BUCKET_MARGIN
        rows.append((f"S3: bytes sent beyond what changed / 16 MiB, {name} layer", beyond, "<= 1"))
    return rows


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--megabytes", type=float, default=60)
    parser.add_argument("--image", type=Path, help="instead of one that is made here")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--json", type=Path, default=measuring.RESULTS / "difference.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="sqshpipe-bench-") as name:
        work = Path(name)
        image = given.image or small_image(work / "image", given.megabytes)
        found = measure(image, work, given.rounds)
    for what, figure, goal in ratios(found):
        print(f"{what:<75} {figure:8.3f}   goal {goal}")
    rows = [[what, round(figure, 4), goal] for what, figure, goal in ratios(found)]
    given.json.write_text(json.dumps({**found, "ratios": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
