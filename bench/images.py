"""Images of real content: this machine's own programs, libraries, Python files and documents in gzip layers.

An image is an OCI layout with two tags. `old` and `new` share every layer but the top one, whose files differ
in one line each, as after a change of a Dockerfile's last step.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.native_image import MEDIA, Layer, put, write_layer

# Where the content comes from, and its share: shared libraries weigh most in an image for training.
_SOURCES = (
    (0.45, ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib/gcc", "/usr/lib/jvm")),
    (0.20, ("/usr/lib/python3", "/usr/lib/python3.11", "/usr/lib/python3.12", "/usr/local/lib")),
    (0.20, ("/usr/bin", "/usr/sbin", "/usr/libexec")),
    (0.15, ("/usr/share", "/usr/include")),
)
_BASE_SHARES = (42, 22, 14, 9, 6, 4, 2, 1)  # of the layers below the top one, as large bases have them
_TOP = 0.04
_LEVEL = 6  # what docker and most builders take

Members = list[tuple[str, Path | bytes]]
"""Paths without a leading slash, and a file of this machine or content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """Where the layout lies, and what is in it."""

    layout: Path
    bytes: int
    files: int
    layers: int

    def facts(self) -> dict[str, int]:
        return {"bytes": self.bytes, "files": self.files, "layers": self.layers}


def make(folder: Path, *, megabytes: float, layers: int = 7, files: int = 0) -> Image:
    """Write it into the new folder; with `files` the content is cut into so many files of one size."""
    (folder / "blobs" / "sha256").mkdir(parents=True)
    limit = int(megabytes * 1e6)
    members: Members = _cut(limit, files) if files else [(str(p).lstrip("/"), p) for p in _real(limit)]
    top_start = max(1, len(members) - max(1, int(len(members) * _TOP)))
    parts = _parted(members[:top_start], layers - 1)
    parts[0][:0] = _shell()
    top = members[top_start:]
    named = [(f"{number}", part, b"") for number, part in enumerate(parts)]
    named += [("old", top, b""), ("new", top, b"# changed\n")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        *below, old, new = pool.map(
            lambda job: write_layer(folder, job[0], _tar(job[1], job[2]), level=_LEVEL), named
        )
    manifests = [
        {**_manifest(folder, [*below, layer]), "annotations": {"org.opencontainers.image.ref.name": tag}}
        for tag, layer in (("old", old), ("new", new))
    ]
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    size = sum(layer.unpacked for layer in [*below, new])
    return Image(layout=folder, bytes=size, files=sum(map(len, parts)) + len(top), layers=len(below) + 1)


def _shell() -> Members:
    """/bin/sh with the libraries that it needs, by the names that it looks for: ranks run in the image."""
    ldd = subprocess.run(["ldd", "/bin/sh"], capture_output=True, text=True, check=True).stdout
    paths = ["/bin/sh", *re.findall(r"(?:^|\s)(/\S+) \(0x", ldd)]
    return [(path.lstrip("/"), Path(path).resolve()) for path in paths]


def _real(limit: int) -> list[Path]:
    """Files of this machine of about `limit` bytes in all, the same ones each time."""
    chosen: dict[Path, None] = {}
    total = 0
    for share, folders in (*_SOURCES, (1.0, tuple(one for _, group in _SOURCES for one in group))):
        wanted = min(limit * share, limit - total)
        for path in _walked(folders):
            size = path.stat().st_size
            if path not in chosen and size <= max(wanted, 0):
                chosen[path] = None
                wanted -= size
                total += size
    return list(chosen)


def _walked(folders: Sequence[str]) -> Iterator[Path]:
    for name in folders:
        for root, below, files in os.walk(name):
            below.sort()
            for file in sorted(files):
                path = Path(root, file)
                if not path.is_symlink() and path.is_file() and os.access(path, os.R_OK):
                    yield path


def _cut(limit: int, files: int) -> Members:
    """Real bytes in files of one size, a hundred in a folder; no two are alike."""
    each = max(1, limit // files)
    content = io.BytesIO(b"".join(path.read_bytes() for path in _real(limit)))
    members: Members = []
    for number in range(files):
        piece = b"%d\n" % number + content.read(each)
        members.append((f"data/{number // 100}/{number}.py", piece))
    return members


def _parted(members: Members, count: int) -> list[Members]:
    """In order, into layers of which the first ones are large."""
    shares = [_BASE_SHARES[number % len(_BASE_SHARES)] for number in range(max(1, count))]
    parts: list[Members] = []
    position = 0.0
    for share in shares:
        end = position + len(members) * share / sum(shares)
        parts.append(members[round(position) : round(end)])
        position = end
    return parts


def _tar(members: Members, head: bytes) -> Iterator[bytes]:
    for name, source in members:
        info = tarfile.TarInfo(name)
        info.mtime = 1_700_000_000
        if isinstance(source, Path):
            info.mode, content = source.stat().st_mode & 0o777, source.read_bytes()
        else:
            content = source
        content = head + content
        info.size = len(content)
        yield info.tobuf()
        yield content
        yield bytes(-len(content) % 512)
    yield bytes(1024)


def _manifest(folder: Path, layers: Sequence[Layer]) -> dict[str, Any]:
    config = {
        "os": "linux",
        "architecture": "amd64",
        "created": "2024-01-01T00:00:00Z",
        "config": {"Env": ["PATH=/usr/bin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.diff_id}" for layer in layers]},
    }
    blobs = [
        {
            "mediaType": f"{MEDIA}.layer.v1.tar+gzip",
            "digest": f"sha256:{layer.digest}",
            "size": layer.stored,
        }
        for layer in layers
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{MEDIA}.manifest.v1+json",
        "config": put(folder, config, f"{MEDIA}.config.v1+json"),
        "layers": blobs,
    }
    return put(folder, manifest, f"{MEDIA}.manifest.v1+json")
