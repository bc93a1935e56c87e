"""What a release costs around the scan: after the verdict, with packs at hand, and beside a build.

    python -m bench.native_image /var/tmp/big-image
    python -m bench.verdict /var/tmp/big-image [--folder DIR] [--rounds 3] [--scan 60] [--output FILE.json]

- Converting, verifying and publishing with all packs at hand, against cp, fsync, a dropped page cache and
  reading back with as many threads into hashlib. In turn, the median counts.
- From the verdict of a scan that takes `--scan` seconds to the published release, with no pack before: the
  median of `--rounds`.
- CPU-bound builds, alternating, with and without the base's layers being packed beside them: one job for each
  processor. It needs a machine that has nothing else to do, since packing waits where others take all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.shell import shell

PIECE = 4 << 20
READERS = 4
BUILDS = 5  # of each kind
JOB = "import hashlib\nfor _ in range(25): hashlib.pbkdf2_hmac('sha256', b'a build', b'step', 500_000)"

RELEASE = """
import json, sys, time
from pathlib import Path
from pipeline.config.types import ConvertOptions
from pipeline.convert.convert import convert
from pipeline.convert.early import early_packing
from pipeline.convert.from_store import StoredLayers
from pipeline.convert.sources import opened_source
from pipeline.convert.verify import verify
from pipeline.oci.entry import DEFAULT_LIMITS
from pipeline.oci.platform import Platform
from pipeline.progress import NO_TASK
from pipeline.release.publish import publish
from pipeline.store.store import Store
image, seconds, version = sys.argv[1], float(sys.argv[4]), sys.argv[5]
cache, root = Path(sys.argv[2]), Path(sys.argv[3])
platform = Platform(os="linux", architecture="amd64")
options, store = ConvertOptions(converter="native"), Store(root)
if not root.exists():
    store.create()
received = Path("/sys/class/net/lo/statistics/rx_bytes")
before = int(received.read_text())
with (
    StoredLayers(store) as stored,
    opened_source(image, platform, scratch=cache, task=NO_TASK) as source,
    store.staging() as staged,
):
    with early_packing(options, cache=cache, limits=DEFAULT_LIMITS) as early:
        if seconds:
            early.begin(lambda: source)
            time.sleep(seconds)
        verdict = time.monotonic()
        early.finish(NO_TASK)
        file = convert(
            source, options, output=staged, scratch=cache, cache=cache, staged=True, stored=stored
        )
        converted = time.monotonic()
        verified = verify(file)
        checked = time.monotonic()
        publish(verified, store=store, image="bench", version=version, scan={"status": "unscanned"})
print(json.dumps({
    "wall_s": time.monotonic() - verdict, "convert_s": converted - verdict, "verify_s": checked - converted,
    "size": file.size, "received_bytes": int(received.read_text()) - before,
    "path": str(store.resolve(f"bench:{version}").path),
}))
"""

BESIDE = """
import sys, time
from pathlib import Path
from pipeline.config.types import ConvertOptions
from pipeline.convert.early import early_packing
from pipeline.convert.sources import opened_source
from pipeline.oci.entry import DEFAULT_LIMITS
from pipeline.oci.platform import Platform
from pipeline.progress import NO_TASK
image, cache = sys.argv[1], Path(sys.argv[2])
with opened_source(image, Platform(os="linux", architecture="amd64"), scratch=cache, task=NO_TASK) as source:
    with early_packing(ConvertOptions(converter="native"), cache=cache, limits=DEFAULT_LIMITS) as early:
        early.begin(lambda: source, behind=True)
        print("begun", flush=True)
        sys.stdin.read()
"""


def release(
    source: str, cache: Path, root: Path, *, scan: float = 0, version: str = "v1.0"
) -> dict[str, Any]:
    """Convert, verify and publish into the store at `root`; with `scan`, from its verdict on."""
    os.sync()
    cache.mkdir(exist_ok=True)
    said = shell(sys.executable, "-c", RELEASE, source, cache, root, scan, version)
    return dict(json.loads(said.splitlines()[-1]))


def release_anew(image: Path, cache: Path, root: Path, scan: float = 0) -> dict[str, Any]:
    """The same into a new store."""
    shutil.rmtree(root, ignore_errors=True)
    return release(f"oci:{image}", cache, root, scan=scan)


def copy_and_read_back(source: Path, target: Path) -> float:
    """Seconds for cp, fsync, and reading what is on the disk through sha256; the packs were in memory too."""
    target.unlink(missing_ok=True)
    with source.open("rb") as read:
        while read.read(PIECE):
            pass
    os.sync()
    began = time.monotonic()
    shell("cp", "--reflink=never", source, target)
    with target.open("r+b") as copied, ThreadPoolExecutor(READERS) as threads:
        os.fsync(copied.fileno())
        os.posix_fadvise(copied.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        digest, size = hashlib.sha256(), target.stat().st_size
        free, reads = deque(bytearray(PIECE) for _ in range(2 * READERS)), deque[Any]()

        def read(buffer: bytearray, at: int) -> tuple[bytearray, int]:
            return buffer, os.preadv(copied.fileno(), [buffer], at)

        at = 0
        while at < size or reads:
            while free and at < size:
                reads.append(threads.submit(read, free.popleft(), at))
                at += PIECE
            buffer, count = reads.popleft().result()
            digest.update(memoryview(buffer)[:count])
            free.append(buffer)
    return time.monotonic() - began


def build() -> float:
    """Seconds for one CPU-bound job on each processor."""
    began = time.monotonic()
    jobs = [subprocess.Popen([sys.executable, "-c", JOB]) for _ in os.sched_getaffinity(0)]
    for job in jobs:
        job.wait()
    return time.monotonic() - began


def build_with_packing(image: Path, cache: Path) -> float:
    """The same beside packing with an empty cache."""
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir()
    command = [sys.executable, "-c", BESIDE, f"oci:{image}", str(cache)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as packing:
        assert packing.stdout is not None
        packing.stdout.readline()
        took = build()
        packing.communicate()
    return took


def measure(
    image: Path, work: Path, rounds: int, scan: float, keep: Callable[[dict[str, Any]], None]
) -> None:
    found: dict[str, Any] = {"scan_s": scan, "processors": len(os.sched_getaffinity(0))}
    found["verdicts"] = []
    for _ in range(rounds):
        shutil.rmtree(work / "cache", ignore_errors=True)
        found["verdicts"].append(release_anew(image, work / "cache", work / "store", scan))
    keep(found)
    warm, copies = [], []
    for _ in range(rounds):
        warm.append(release_anew(image, work / "cache", work / "store"))
        copies.append(copy_and_read_back(Path(warm[-1]["path"]), work / "copy"))
        found |= {"warm": warm, "copy_and_read_back_s": copies}
    keep(found)
    beside, alone = [], []
    for _ in range(BUILDS):
        alone.append(build())
        beside.append(build_with_packing(image, work / "other"))
    keep(found | {"build_s": alone, "build_with_packing_s": beside})


def ratios(found: dict[str, Any]) -> list[tuple[str, float, str]]:
    """What, the figure, and the goal for it."""
    after = statistics.median(each["wall_s"] for each in found["verdicts"])
    rows = [(f"scan of {found['scan_s']:.0f} s: verdict -> published, s", after, "<= 10")]
    if "warm" in found:
        ours = statistics.median(each["wall_s"] for each in found["warm"])
        theirs = statistics.median(found["copy_and_read_back_s"])
        rows.append(("convert, verify, publish / cp, fsync, read back", ours / theirs, "<= 1.3"))
    if "build_s" in found:
        slower = statistics.median(found["build_with_packing_s"]) / statistics.median(found["build_s"])
        rows.append(("build with packing / build", slower, "<= 1.1"))
    return rows


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("image", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scan", type=float, default=60)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    kept: dict[str, Any] = {}

    def keep(found: dict[str, Any]) -> None:
        kept.update(found)
        if given.output:
            rows = [[what, round(figure, 3), goal] for what, figure, goal in ratios(kept)]
            given.output.write_text(json.dumps({**kept, "ratios": rows}, indent=2) + "\n")

    with tempfile.TemporaryDirectory(dir=given.folder, prefix="sqshpipe-bench-") as name:
        measure(given.image, Path(name), given.rounds, given.scan, keep)
    for what, figure, goal in ratios(kept):
        print(f"{what:<50} {figure:8.2f}   goal {goal}")


if __name__ == "__main__":
    main()
