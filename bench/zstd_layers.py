"""What zstd instead of gzip would save in an image's layers: bytes, time to compress, time to convert.

    python -m bench.zstd_layers [--megabytes 400] [--level 3] [--rounds 3] [--json FILE]

The same image of this machine's own files twice: with gzip layers of level 6, as docker pushes them, and with
the same layers as zstd, as BuildKit makes them with `compression=zstd`. Each is converted by `native` from
nothing. The .sqsh has to be the same.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import zstandard
from isal import igzip

from bench.images import make
from bench.native_image import MEDIA, put
from pipeline.config.types import ConvertOptions
from pipeline.convert.native import convert_native
from pipeline.oci.layout import open_layout
from pipeline.oci.platform import Platform
from pipeline.system.hashing import hashed

PLATFORM = Platform(os="linux", architecture="amd64")
TAG = "new"


def as_zstd(layout: Path, target: Path, level: int) -> float:
    """Write the image `TAG` of `layout` with zstd layers into `target`; seconds that compressing took."""
    blobs = target / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    index = json.loads((layout / "index.json").read_text())
    [entry] = [
        one for one in index["manifests"] if one["annotations"]["org.opencontainers.image.ref.name"] == TAG
    ]
    manifest = json.loads(_blob(layout, entry).read_text())
    shutil.copy(_blob(layout, manifest["config"]), blobs)
    spent, layers = 0.0, []
    for layer in manifest["layers"]:
        with igzip.open(_blob(layout, layer)) as file:  # type: ignore[no-untyped-call]
            plain = file.read()
        began = time.monotonic()
        data = zstandard.ZstdCompressor(level=level, threads=-1).compress(plain)
        spent += time.monotonic() - began
        (target / "layer").write_bytes(data)
        with (target / "layer").open("rb") as stored:
            digest = hashed(stored).hexdigest()
        (target / "layer").rename(blobs / digest)
        layers.append(
            {"mediaType": f"{MEDIA}.layer.v1.tar+zstd", "digest": f"sha256:{digest}", "size": len(data)}
        )
    made = put(target, {**manifest, "layers": layers}, f"{MEDIA}.manifest.v1+json")
    named = {**made, "annotations": {"org.opencontainers.image.ref.name": TAG}}
    (target / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    shutil.copy(layout / "oci-layout", target)
    return spent


def _blob(layout: Path, descriptor: dict[str, Any]) -> Path:
    return layout / "blobs" / "sha256" / descriptor["digest"].partition(":")[2]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--level", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sqshpipe-bench-", dir="/var/tmp") as name:
        folder = Path(name)
        image = make(folder / "gzip", megabytes=given.megabytes)
        spent = as_zstd(image.layout, folder / "zstd", given.level)
        seconds: dict[str, list[float]] = {"gzip": [], "zstd": []}
        written = {}
        for _ in range(given.rounds):
            for kind, times in seconds.items():
                source = open_layout(folder / kind, TAG, platform=PLATFORM)
                cache, output = folder / "cache", folder / f"{kind}.sqsh"
                began = time.monotonic()
                convert_native(source, ConvertOptions(), output=output, cache=cache)
                times.append(time.monotonic() - began)
                shutil.rmtree(cache)
                with output.open("rb") as file:
                    written[kind] = hashed(file).hexdigest()
        assert written["gzip"] == written["zstd"]
        stored = {
            kind: open_layout(folder / kind, TAG, platform=PLATFORM).manifest().size for kind in seconds
        }
    rows = [
        {
            "layers": kind,
            "stored_mb": round(stored[kind] / 1e6, 1),
            "seconds": round(statistics.median(times), 2),
        }
        for kind, times in seconds.items()
    ]
    for row in rows:
        print(f"{row['layers']}: {row['stored_mb']} MB stored, converted in {row['seconds']} s")
    saved = 1 - stored["zstd"] / stored["gzip"]
    print(f"zstd level {given.level} saves {saved:.0%}; compressing took {spent:.1f} s on all cores")
    if given.json:
        facts = {
            **image.facts(),
            "level": given.level,
            "rounds": given.rounds,
            "compress_seconds": round(spent, 1),
            "rows": rows,
        }
        given.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
