"""Peak memory of a native conversion against the bytes of the image, its files staying as many.

    python -m bench.native_memory [--megabytes 500 1000 2000] [--folder /var/tmp]

Each image has four layers and 2,000 files in all; each conversion runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.native import convert
from bench.native_image import write_layer, write_manifest

FILES = 2000
LAYERS = 4


def layer_tar(number: int, size: int) -> Iterator[bytes]:
    """The tar of one layer: its files together have `size` bytes, half of them easy to compress."""
    rng = random.Random(number)
    each = size // (FILES // LAYERS)
    for file in range(FILES // LAYERS):
        info = tarfile.TarInfo(f"layer-{number}/{file:05}")
        info.size = each
        yield info.tobuf()
        yield rng.randbytes(each // 2) + bytes([file % 251]) * (each - each // 2) + bytes(-each % 512)
    yield bytes(1024)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, nargs="+", default=[500, 1000, 2000])
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    given = parser.parse_args()
    for megabytes in given.megabytes:
        with tempfile.TemporaryDirectory(dir=given.folder, prefix="sqshpipe-memory-") as name:
            folder = Path(name)
            (folder / "blobs" / "sha256").mkdir(parents=True)
            size = megabytes * 1_000_000 // LAYERS
            layers = [write_layer(folder, f"{n}", layer_tar(n, size), level=1) for n in range(LAYERS)]
            write_manifest(folder, layers)
            done = convert(folder, folder / "out.sqsh", folder / "cache")
            print(
                json.dumps({"image_megabytes": megabytes, "peak_megabytes": done["peak_bytes"] // 1_000_000})
            )


if __name__ == "__main__":
    main()
