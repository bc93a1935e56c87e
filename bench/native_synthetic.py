"""Stitch an image of very many files out of a made-up pack: time and memory against the number of files.

    python -m bench.native_synthetic [--files 100000 1000000] [--folder /var/tmp]

Each size runs in a process of its own, so that peak memory is that of one size. One JSON line a size.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from array import array
from pathlib import Path

import zstandard

from pipeline.convert.native import entries
from pipeline.oci.merge import merge
from pipeline.squashfs.cache import PackCache
from pipeline.squashfs.codecs import Codec
from pipeline.squashfs.inode import Kind
from pipeline.squashfs.pack import Pack
from pipeline.squashfs.packindex import DIGEST_SIZE, PackIndex
from pipeline.squashfs.stitch import StitchOptions, stitch

BLOCK = 1 << 17
SIZE = 100  # bytes of a file
IN_FOLDER = 100


def make_pack(cache: PackCache, files: int) -> Path:
    """A pack of `files` small files in folders of a hundred."""
    index = PackIndex(header={"block_size": BLOCK})
    in_fragment = BLOCK // SIZE
    payload = zstandard.ZstdCompressor().compress(bytes(range(SIZE)) * in_fragment)
    with cache.writing("synthetic") as handle:
        for number in range(files):
            folder = b"folder-%05d" % (number // IN_FOLDER)
            if number % IN_FOLDER == 0:
                add(index, folder, Kind.DIRECTORY, 0, 0, 0, bytes(DIGEST_SIZE))
            if number % in_fragment == 0:
                position = len(payload) * len(index.fragment_positions)
                index.fragment_positions.append(position)
                index.fragment_words.append(len(payload))
                index.fragment_sizes.append(min(in_fragment, files - number) * SIZE)
                index.fragment_sums.append(zlib_crc32(payload))
                handle.write([payload])
            digest = number.to_bytes(DIGEST_SIZE, "little")
            fragment, offset = number // in_fragment, number % in_fragment * SIZE
            name = b"%b/a-file-of-some-name-%07d.py" % (folder, number)
            add(index, name, Kind.FILE, SIZE, fragment, offset, digest)
        handle.complete(index)
    return cache.folder / "synthetic.pack"


def zlib_crc32(data: bytes) -> int:
    from isal import isal_zlib

    return int(isal_zlib.crc32(data))


def add(index: PackIndex, path: bytes, kind: Kind, size: int, place: int, detail: int, digest: bytes) -> None:
    index.paths.append(path)
    index.kinds.append(kind)
    values = {"modes": 0o755, "uids": 0, "gids": 0, "mtimes": 1_700_000_000 + len(index.paths) % 1000}
    values |= {"sizes": size, "checksums": len(index.paths), "places": place, "details": detail}
    for name, value in values.items():
        column: array[int] = getattr(index, name)
        column.append(value)
    index.digests += digest


def run(path: Path, target: Path) -> dict[str, float]:
    """Load, merge and stitch once; seconds of each step, and peak memory in bytes."""
    started = time.monotonic()
    with Pack.open(path) as pack:
        tree = merge([entries(pack.index)])
        merged = time.monotonic()
        descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        done = stitch(tree, [pack], descriptor, StitchOptions(codec=Codec()))
        os.close(descriptor)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    ended = time.monotonic()
    return {
        "inodes": done.inode_count,
        "load_and_merge_s": round(merged - started, 2),
        "stitch_s": round(ended - merged, 2),
        "peak_bytes": peak,
        "peak_allowed_bytes": 300_000_000 + 1000 * done.inode_count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--pack", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.pack is not None:
        print(json.dumps(run(given.pack, given.pack.with_name("made.sqsh"))))
        return
    for files in given.files:
        with tempfile.TemporaryDirectory(dir=given.folder, prefix="sqshpipe-synthetic-") as name:
            pack = make_pack(PackCache(Path(name)), files)
            subprocess.run([sys.executable, "-m", "bench.native_synthetic", "--pack", pack], check=True)


if __name__ == "__main__":
    main()
