"""A store written by hand, as its format is documented: for readers that must not depend on who wrote it."""

from __future__ import annotations

import binascii
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


EVENTS = {
    "published": (),
    "yanked": ("yank",),
    "hidden": ("hide",),
    "pruned": ("hide", "delete"),
    "damaged": ("damaged",),
}
"""What makes a release be in a state."""


def sealed(table: dict[str, Any]) -> bytes:
    """A JSON object with its checksum as the last key: the CRC-32 of all bytes before that key."""
    before = json.dumps({key: value for key, value in table.items() if key != "crc32"})[:-1].encode() + b", "
    return before + f'"crc32": "{binascii.crc32(before):08x}"}}\n'.encode()


class HandmadeStore:
    """Writes blobs, records, events, links and indexes under `root`, and nothing else."""

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
        for kind in EVENTS[state]:
            self.event(image, kind, version, platform=platform)
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
        self.event(image, "promote", version, channel=name)
        if index:
            table = self.index(image)
            table["channels"][name] = version
            self.write_index(image, table)

    def index(self, image: str) -> dict[str, Any]:
        path = self.root / image / "index.json"
        if not path.exists():
            return {"schema": 1, "image": image, "events": 0, "releases": {}, "channels": {}}
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def write_index(self, image: str, table: dict[str, Any]) -> None:
        """Write an index that is whole and newer than every event, whatever `table` claims."""
        path = self.root / image / "index.json"
        temporary = path.with_name(".index.new")
        events = self.events(image)
        newest = f"{binascii.crc32(events[-1].read_bytes()):08x}" if events else ""
        temporary.write_bytes(sealed(table | {"events": len(events), "newest_event": newest}))
        temporary.replace(path)

    def events(self, image: str) -> list[Path]:
        """The files of the events, oldest first."""
        return sorted((self.root / image / ".meta" / "events").glob("*.json"))

    def event(self, image: str, kind: str, version: str, **more: str) -> Path:
        """The next event; the index stays as it is."""
        path = self.root / image / ".meta" / "events" / f"{len(self.events(image)) + 1:08d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sealed({"schema": 1, "event": kind, "image": image, "version": version, **more}))
        return path
