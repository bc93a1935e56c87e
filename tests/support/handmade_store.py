"""A store written by hand, as its format is documented: for readers that must not depend on who wrote it."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any


def squashfs_like(text: str, size: int = 4096) -> bytes:
    """`size` bytes that pass for a squashfs at first sight: a superblock of format 4.0 and a body."""
    head = struct.pack("<4s4I6H8Q", b"hsqs", 1, 0, 131072, 0, 6, 17, 0, 1, 4, 0, 0, size, *([0] * 6))
    body = hashlib.sha256(text.encode()).digest() * (size // 32 + 1)
    return (head + body)[:size]


class HandmadeStore:
    """Writes blobs, records, links and indexes under `root`, and nothing else."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "blobs" / "sha256").mkdir(parents=True)
        (root / "leases").mkdir()
        (root / "leases").chmod(0o1777)
        root.chmod(0o755)

    def release(
        self,
        image: str,
        version: str,
        *,
        platform: str = "linux/amd64",
        state: str = "published",
        source: str = "",
        repository: str = "registry.example.com/team",
        base: tuple[str, str] = ("docker.io/library/debian:12", "sha256:" + "b" * 64),
        content: bytes | None = None,
        created: str = "2026-11-22T12:00:00Z",
        index: bool = True,
    ) -> Path:
        """One release; gives the path of its bytes. Without `index` only record and link are made."""
        content = squashfs_like(f"{image}{version}{platform}") if content is None else content
        sha256 = hashlib.sha256(content).hexdigest()
        file = f"blobs/sha256/{sha256}.sqsh"
        path = self.root / file
        if not path.exists():
            path.write_bytes(content)
            path.chmod(0o444)
        source = source or "sha256:" + hashlib.sha256(f"{image}{version}{platform}".encode()).hexdigest()
        folder = self.root / image
        folder.mkdir(exist_ok=True)
        stem = version if platform == "linux/amd64" else f"{version}.{platform.replace('/', '-')}"
        record = {
            "schema": 1,
            "image": image,
            "version": version,
            "platform": platform,
            "file": file,
            "sha256": sha256,
            "size": len(content),
            "source": {"repository": f"{repository}/{image}", "digest": source},
            "base": {"reference": base[0], "digest": base[1]},
            "created": created,
        }
        (folder / f"{stem}.json").write_text(json.dumps(record))
        link = folder / f"{stem}.sqsh"
        link.unlink(missing_ok=True)
        if state == "published":
            link.symlink_to(f"../{file}")
        if index:
            table = self.index(image)
            entry = table["releases"].setdefault(version, {"created": created, "platforms": {}})
            entry["state"] = state
            entry["platforms"][platform] = {
                "file": file,
                "sha256": sha256,
                "size": len(content),
                "source": source,
            }
            self.write_index(image, table)
        return path

    def channel(self, image: str, name: str, version: str, *, index: bool = True) -> None:
        link = self.root / image / f"{name}.sqsh"
        link.unlink(missing_ok=True)
        link.symlink_to(f"{version}.sqsh")
        if index:
            table = self.index(image)
            table["channels"][name] = version
            self.write_index(image, table)

    def index(self, image: str) -> dict[str, Any]:
        path = self.root / image / "index.json"
        if not path.exists():
            return {"schema": 1, "image": image, "releases": {}, "channels": {}}
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def write_index(self, image: str, table: dict[str, Any]) -> None:
        path = self.root / image / "index.json"
        temporary = path.with_name(".index.new")
        temporary.write_text(json.dumps(table))
        temporary.replace(path)
