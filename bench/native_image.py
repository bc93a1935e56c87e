"""A large image of real content for benchmarks: what this machine has installed, as a layout of gzip layers.

    python -m bench.native_image FOLDER [--package torch ...] [--find-links DIR]

Layers: a Debian root's programs, its libraries, its shared files and headers, the Python that runs this,
Python packages (installed by pip for the image), a layer that hides and replaces some of all that, and a top
layer of about 30 MB. Paths that a machine lacks are left out; `image.json` in FOLDER says what was made.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

LEVEL = 6  # what docker and most builders take
TOP_BYTES = 30_000_000
MEDIA = "application/vnd.oci.image"


@dataclass(slots=True)
class Layer:
    """A blob that was written, and what is in it."""

    name: str
    diff_id: str = ""
    digest: str = ""
    stored: int = 0
    unpacked: int = 0
    entries: int = 0
    paths: list[str] = field(default_factory=list)


def debian_layers() -> dict[str, list[str]]:
    """Folders of a Debian root, relative to /, by layer."""
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    big = [f"usr/lib/{name}" for name in (multiarch, "gcc", "jvm", "llvm-14", "postgresql", "python3")]
    return {
        "programs": ["bin", "sbin", "lib", "lib64", "etc", "usr/bin", "usr/sbin", "usr/libexec"],
        "libraries": big,
        "shared": ["usr/share", "usr/include"],
        "python": [sys.base_prefix.lstrip("/")],
    }


def tar_of(paths: list[str], root: Path) -> subprocess.Popen[bytes]:
    present = [path for path in paths if (root / path).exists()]
    command = ["tar", "--sort=name", "--numeric-owner", "--one-file-system", "-C", root, "-cf", "-", *present]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def pieces(stream: io.BufferedIOBase) -> Iterator[bytes]:
    while piece := stream.read(1 << 20):
        yield piece


def write_layer(folder: Path, name: str, plain: Iterator[bytes], *, level: int = LEVEL) -> Layer:
    """Compress a tar into the layout as it comes."""
    layer = Layer(name)
    diff_id = hashlib.sha256()
    temporary = folder / f"{name}.tmp"
    with temporary.open("wb") as raw, gzip.GzipFile("", "wb", level, raw, mtime=0) as packed:
        for piece in plain:
            diff_id.update(piece)
            layer.unpacked += len(piece)
            packed.write(piece)
    with temporary.open("rb") as stored:
        digest = hashlib.sha256()
        for piece in pieces(stored):
            digest.update(piece)
    layer.diff_id, layer.digest, layer.stored = (
        diff_id.hexdigest(),
        digest.hexdigest(),
        temporary.stat().st_size,
    )
    temporary.rename(folder / "blobs" / "sha256" / layer.digest)
    return layer


def from_tar(folder: Path, name: str, paths: list[str], root: Path) -> Layer:
    with tar_of(paths, root) as process:
        assert process.stdout is not None
        return write_layer(folder, name, pieces(process.stdout))


def changes() -> bytes:
    """A layer as an upgrade makes it: documents hidden, one tree opaque, some files replaced."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name in ("usr/share/doc/.wh..wh..opq", "usr/share/man/.wh.man1", "usr/include/.wh.linux"):
            tar.addfile(tarfile.TarInfo(name))
        for number in range(200):
            info = tarfile.TarInfo(f"usr/share/doc/new/{number}")
            content = b"written anew %d\n" % number * 50
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


def top(seed: int = 4) -> bytes:
    """What a small change of a Dockerfile's last lines brings: a program, some data, many small files."""
    rng = random.Random(seed)
    words = [rng.randbytes(5).hex().encode() for _ in range(3000)]
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        while made.tell() < TOP_BYTES:
            content = b" ".join(rng.choices(words, k=rng.choice((50, 500, 5000, 200_000))))
            info = tarfile.TarInfo(f"opt/app/{made.tell():09}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


def install(folder: Path, packages: list[str], find_links: Path | None) -> Path:
    target = folder / "packages"
    if not target.is_dir():
        command = [sys.executable, "-m", "pip", "install", "-q", "--target", target / "opt/packages"]
        command += ["--find-links", find_links] if find_links else []
        subprocess.run([*command, *packages], check=True)
    return target


def build(folder: Path, packages: list[str], find_links: Path | None) -> None:
    """Write the layout; layers are compressed side by side."""
    (folder / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
    jobs = [(name, paths, Path("/")) for name, paths in debian_layers().items()]
    if packages:
        jobs.append(("packages", ["opt"], install(folder, packages, find_links)))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        layers = list(pool.map(lambda job: from_tar(folder, *job), jobs))
        layers += pool.map(
            lambda job: write_layer(folder, *job), [("changes", iter((changes(),))), ("top", iter((top(),)))]
        )
    for number, layer in enumerate(layers):
        layer.entries = count_entries(folder / "blobs" / "sha256" / layer.digest)
        print(f"layer {number}: {layer.name}, {layer.unpacked >> 20} MiB, {layer.entries} entries")
    write_manifest(folder, layers)


def count_entries(blob: Path) -> int:
    listed = subprocess.run(["tar", "-tzf", blob], check=True, capture_output=True)
    return listed.stdout.count(b"\n")


def put(folder: Path, value: object, media_type: str) -> dict[str, object]:
    data = json.dumps(value, sort_keys=True).encode()
    digest = hashlib.sha256(data).hexdigest()
    (folder / "blobs" / "sha256" / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def write_manifest(folder: Path, layers: list[Layer]) -> None:
    config = {
        "os": "linux",
        "architecture": "amd64",
        "created": "2024-01-01T00:00:00Z",
        "config": {"Env": ["PATH=/usr/bin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.diff_id}" for layer in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{MEDIA}.manifest.v1+json",
        "config": put(folder, config, f"{MEDIA}.config.v1+json"),
        "layers": [
            {
                "mediaType": f"{MEDIA}.layer.v1.tar+gzip",
                "digest": f"sha256:{layer.digest}",
                "size": layer.stored,
            }
            for layer in layers
        ],
    }
    index = {"schemaVersion": 2, "manifests": [put(folder, manifest, f"{MEDIA}.manifest.v1+json")]}
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    facts = {
        "unpacked_bytes": sum(layer.unpacked for layer in layers),
        "stored_bytes": sum(layer.stored for layer in layers),
        "entries": sum(layer.entries for layer in layers),
        "layers": [[layer.name, layer.unpacked, layer.entries] for layer in layers],
    }
    (folder / "image.json").write_text(json.dumps(facts, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--package", nargs="*", default=["torch", "numpy", "scipy", "pandas", "scikit-learn"])
    parser.add_argument("--find-links", type=Path)
    given = parser.parse_args()
    build(given.folder, given.package, given.find_links)


if __name__ == "__main__":
    main()
