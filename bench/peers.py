"""From an OCI image to a .sqsh: sqshpipe beside every peer that is installed, in one run, in turn.

    python -m bench.peers [--size small|medium|large] [--rounds 3] [--output FILE.json]

The image is made of this machine's own files, in gzip layers. Every tool gets zstd level 3 and blocks of
128 KiB. Seconds and CPU seconds are those of the whole process tree that was waited for; the peak is of its
largest process. "from a tree" is given the image already unpacked, which the others do themselves; and only
sqshpipe's figures contain a full read-back that compares the file with the layers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from pipeline.tools.process import which

SOURCES = ("/usr/lib/python3", "/usr/lib/python3.11", "/usr/share", "/usr/bin", "/usr/lib", "/usr/sbin")
MEGABYTES = {"small": 60, "medium": 400, "large": 2000}
LAYERS = 6
SQUASH = ["-noappend", "-comp", "zstd", "-Xcompression-level", "3", "-b", "128K", "-no-progress", "-quiet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run: wall and CPU seconds, peak resident bytes, bytes written to disk, bytes of the file made."""

    seconds: float
    cpu: float
    peak: int
    written: int
    size: int


def real_files(limit: int) -> Iterator[Path]:
    """Files of this machine up to `limit` bytes in all, the same ones each time."""
    left = limit
    for source in SOURCES:
        for path in sorted(Path(source).rglob("*")) if Path(source).is_dir() else ():
            if path.is_symlink() or not path.is_file() or not os.access(path, os.R_OK):
                continue
            left -= path.stat().st_size
            if left < 0:
                return
            yield path


def make_layout(folder: Path, megabytes: int) -> tuple[Path, Path]:
    """An OCI layout of real files in gzip layers, and the same files as a tree."""
    files = list(dict.fromkeys(real_files(megabytes * 1_000_000)))
    layout, tree = folder / "layout", folder / "tree"
    quiet = {"stdout": subprocess.DEVNULL, "check": True}
    subprocess.run(["umoci", "init", "--layout", layout], **quiet)  # type: ignore[call-overload]
    subprocess.run(["umoci", "new", "--image", f"{layout}:bench"], **quiet)  # type: ignore[call-overload]
    for number in range(LAYERS):
        layer = folder / "layer.tar"
        with tarfile.open(layer, "w") as tar:
            if number == 0:
                tar.add(Path("/bin/sh").resolve(), "bin/sh")
            for path in files[number::LAYERS]:
                tar.add(path, str(path).lstrip("/"), recursive=False)
        subprocess.run(["umoci", "raw", "add-layer", "--image", f"{layout}:bench", layer], **quiet)  # type: ignore[call-overload]
        tree.mkdir(exist_ok=True)
        with tarfile.open(layer) as tar:
            tar.extractall(tree, filter="fully_trusted")
        layer.unlink()
    return layout, tree


def peers(layout: Path, tree: Path, work: Path) -> dict[str, str]:
    """A shell line for each way that is possible here; $OUT is the file to make."""
    ours = f"{shlex.quote(sys.executable)} -m pipeline -q convert oci:{layout}:bench -o $OUT --converter"
    squash = shlex.join(SQUASH)
    ways = {
        "sqshpipe native": f"rm -rf {work}/cold; SQSHPIPE_CACHE={work}/cold {ours} native",
        "sqshpipe native, packs cached": f"SQSHPIPE_CACHE={work}/warm {ours} native",
        "sqshpipe mksquashfs": f"rm -rf {work}/cold; SQSHPIPE_CACHE={work}/cold {ours} mksquashfs",
        "umoci and mksquashfs": f"rm -rf {work}/bundle; umoci unpack --image {layout}:bench {work}/bundle "
        f"&& mksquashfs {work}/bundle/rootfs $OUT {squash}",
        "mksquashfs, from a tree": f"mksquashfs {tree} $OUT {squash}",
        "tar2sqfs, from a tree": f"tar -C {tree} -cf - . | tar2sqfs -q -f -c zstd -X level=3 -b 131072 $OUT",
    }
    if shutil.which("ch-convert"):
        ways["ch-convert, from a tree"] = f"rm -f $OUT; ch-convert {tree} $OUT"
    return {name: line for name, line in ways.items() if name.startswith("sqshpipe") or _there(line)}


def _there(line: str) -> bool:
    return all(shutil.which(word) for word in ("umoci", "mksquashfs", "tar2sqfs") if word in line.split())


def measure(line: str, made: Path) -> Run:
    """Run a shell line to its end; SystemExit when it fails."""
    made.unlink(missing_ok=True)
    began = time.perf_counter()
    environment = {**os.environ, "OUT": str(made)}
    process = subprocess.Popen([which("sh", hint=""), "-c", line], env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{line} ended with {process.returncode}")
    return Run(
        seconds=time.perf_counter() - began,
        cpu=used.ru_utime + used.ru_stime,
        peak=used.ru_maxrss * 1024,
        written=used.ru_oublock * 512,
        size=made.stat().st_size,
    )


def plot(medians: dict[str, float], title: str) -> str:
    """Horizontal bars as SVG; both colours read on white and on black."""
    longest, height = max(medians.values()), 34 * len(medians) + 44
    rows = []
    for number, (name, seconds) in enumerate(medians.items()):
        top, width = 40 + 34 * number, 380 * seconds / longest
        colour = "#0b8f7b" if name.startswith("sqshpipe") else "#8a938f"
        rows.append(
            f'<text x="228" y="{top + 16}" text-anchor="end">{name}</text>'
            f'<rect x="240" y="{top}" width="{width:.1f}" height="22" rx="3" fill="{colour}"/>'
            f'<text x="{248 + width:.1f}" y="{top + 16}">{seconds:.1f} s</text>'
        )
    style = "text{font:13px system-ui,sans-serif;fill:#6b7672}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 {height}" role="img">'
        f"<title>{title}</title>"
        f'<style>{style}</style><text x="12" y="22">{title}</text>{"".join(rows)}</svg>\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--size", choices=MEGABYTES, default="small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sqshpipe-bench-", dir="/var/tmp") as name:
        work = Path(name)
        layout, tree = make_layout(work, MEGABYTES[given.size])
        ways = peers(layout, tree, work)
        runs: dict[str, list[Run]] = {name: [] for name in ways}
        measure(ways["sqshpipe native, packs cached"], work / "made.sqsh")  # fills its cache
        for number in range(given.rounds):
            for way in list(ways) if number % 2 == 0 else list(ways)[::-1]:
                runs[way].append(measure(ways[way], work / "made.sqsh"))
    medians = {way: statistics.median(run.seconds for run in done) for way, done in runs.items()}
    least = medians["sqshpipe native"]
    print(f"{'':<31} median     spread        CPU   peak MB  written MB  size MB  ratio")
    for way, done in runs.items():
        cpu, peak = statistics.median(run.cpu for run in done), max(run.peak for run in done) / 1e6
        written, size = statistics.median(run.written for run in done) / 1e6, done[-1].size / 1e6
        low, high = min(run.seconds for run in done), max(run.seconds for run in done)
        print(
            f"{way:<31} {medians[way]:5.1f} s {low:5.1f}-{high:5.1f} s {cpu:6.1f} s {peak:8.0f}"
            f" {written:11.0f} {size:8.1f} {medians[way] / least:6.2f}"
        )
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        date = datetime.now(timezone.utc)
        machine = {
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
        }
        facts = {
            "date": f"{date:%Y-%m-%d}",
            "size": given.size,
            "megabytes": MEGABYTES[given.size],
            **machine,
        }
        found = {**facts, "runs": {way: [asdict(run) for run in done] for way, done in runs.items()}}
        given.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        title = f"Image to .sqsh, {MEGABYTES[given.size]} MB of real files, median of {given.rounds}"
        given.output.with_suffix(".svg").write_text(plot(medians, title), encoding="utf-8")


if __name__ == "__main__":
    main()
